// 16-bit storage to and from float, round to nearest even. Included once per instruction set inside FASTRNN_NS.

inline float bits_float(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

inline uint32_t float_bits(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  return bits;
}

void load_bf16(const void* from, float* to, int64_t n) {
  const uint16_t* p = static_cast<const uint16_t*>(from);
  for (int64_t i = 0; i < n; ++i) to[i] = bits_float(static_cast<uint32_t>(p[i]) << 16);
}

void store_bf16(const float* from, void* to, int64_t n) {
  uint16_t* p = static_cast<uint16_t*>(to);
  int64_t i = 0;
#if FASTRNN_VECTOR_BYTES == 64
  for (; i + 16 <= n; i += 16) {
    const __m512 value = _mm512_loadu_ps(from + i);
    const __m512i bits = _mm512_castps_si512(value), high = _mm512_srli_epi32(bits, 16);
    const __m512i even = _mm512_and_si512(high, _mm512_set1_epi32(1));
    const __m512i sum = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF)), even);
    const __mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
    const __m512i rounded = _mm512_mask_blend_epi32(nan, _mm512_srli_epi32(sum, 16), _mm512_set1_epi32(0x7FC0));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + i), _mm512_cvtepi32_epi16(rounded));
  }
#endif
  for (; i < n; ++i) {
    const uint32_t bits = float_bits(from[i]);
    const uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
    p[i] = static_cast<uint16_t>(from[i] != from[i] ? 0x7FC0 : rounded);
  }
}

// Half precision by rescaling: the exponent moves by 112 through one multiplication, which handles subnormals as well.
inline float half_float(uint16_t half) {
  const uint32_t magnitude = half & 0x7FFF, sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const float scaled = bits_float(magnitude << 13) * bits_float(0x77800000);  // 2^112
  const uint32_t special = magnitude >= 0x7C00 ? 0x7F800000 | (magnitude << 13) : float_bits(scaled);
  return bits_float(special | sign);
}

inline uint16_t float_half(float value) {
  const uint32_t bits = float_bits(value), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7FFFFFFF;
  if (magnitude > 0x7F800000) return static_cast<uint16_t>(sign | 0x7E00);
  if (magnitude >= 0x477FF000) return static_cast<uint16_t>(sign | 0x7C00);  // rounds to 2^16 or beyond
  if (magnitude < 0x38800000) {                                              // subnormal: let an addition round it
    const float shifted = bits_float(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (float_bits(shifted) - 0x3F000000));
  }
  return static_cast<uint16_t>(sign | ((magnitude + 0xC8000FFF + (magnitude >> 13 & 1)) >> 13));
}

void load_f16(const void* from, float* to, int64_t n) {
  const uint16_t* p = static_cast<const uint16_t*>(from);
  int64_t i = 0;
#if FASTRNN_VECTOR_BYTES >= 32
  for (; i + 8 <= n; i += 8) {
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + i))));
  }
#endif
  for (; i < n; ++i) to[i] = half_float(p[i]);
}

void store_f16(const float* from, void* to, int64_t n) {
  uint16_t* p = static_cast<uint16_t*>(to);
  int64_t i = 0;
#if FASTRNN_VECTOR_BYTES >= 32
  for (; i + 8 <= n; i += 8) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p + i), _mm256_cvtps_ph(_mm256_loadu_ps(from + i), 0));
  }
#endif
  for (; i < n; ++i) p[i] = float_half(from[i]);
}
