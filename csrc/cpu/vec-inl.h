// Vectors of one instruction set, by the compiler's vector extension: + - * / and comparisons come with it. Included
// once per instruction set inside FASTRNN_NS; no include guard on purpose.
//
// Fused multiply-add is written out as fma(): the build turns contraction off, so that every rounding is the source's
// and a row's result cannot depend on which tile of rows it was computed in.

#define FASTRNN_INLINE inline __attribute__((always_inline))

template <class C>
struct VecOf;
template <>
struct VecOf<float> {
  typedef float type __attribute__((vector_size(FASTRNN_VECTOR_BYTES)));
  typedef int32_t bits __attribute__((vector_size(FASTRNN_VECTOR_BYTES)));
};
template <>
struct VecOf<double> {
  typedef double type __attribute__((vector_size(FASTRNN_VECTOR_BYTES)));
  typedef int64_t bits __attribute__((vector_size(FASTRNN_VECTOR_BYTES)));
};
template <class C>
using Vec = typename VecOf<C>::type;
template <class C>
using Bits = typename VecOf<C>::bits;
template <class C>
constexpr int kLanes = FASTRNN_VECTOR_BYTES / sizeof(C);

FASTRNN_INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
#if FASTRNN_VECTOR_BYTES == 64
  return (Vec<float>)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif FASTRNN_VECTOR_BYTES == 32
  return (Vec<float>)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
  return (Vec<float>)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}

FASTRNN_INLINE Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
#if FASTRNN_VECTOR_BYTES == 64
  return (Vec<double>)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif FASTRNN_VECTOR_BYTES == 32
  return (Vec<double>)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#elif defined(__aarch64__)
  return (Vec<double>)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
#else
  return a * b + c;
#endif
}

template <class C>
FASTRNN_INLINE Vec<C> splat(C value) {
  return value - Vec<C>{};  // x - 0 is x, so this is one broadcast; 0 + x would be an addition, for the sake of -0
}

// a / b for b in [1, 2], rounded as a division nearly always: a division of 512 bits takes as long as sixteen products.
FASTRNN_INLINE Vec<float> quotient(Vec<float> a, Vec<float> b) {
#if FASTRNN_VECTOR_BYTES == 64
  // maskz_: GCC 12 warns of the undefined lanes of the other
  const Vec<float> r = (Vec<float>)_mm512_maskz_rcp14_ps(0xFFFF, (__m512)b), q = a * r;  // r is off by 2^-14 at most,
  return fma(fma(-b, q, a), r, q);                                                       // and this by that squared
#else
  return a / b;
#endif
}

FASTRNN_INLINE Vec<double> quotient(Vec<double> a, Vec<double> b) { return a / b; }

// a, or low where a is less; NaN stays NaN.
FASTRNN_INLINE Vec<float> at_least(Vec<float> a, float low) {
#if FASTRNN_VECTOR_BYTES == 64
  return (Vec<float>)_mm512_maskz_max_ps(0xFFFF, (__m512)splat(low), (__m512)a);  // of two, NaN yields the second
#elif FASTRNN_VECTOR_BYTES == 32
  return (Vec<float>)_mm256_max_ps((__m256)splat(low), (__m256)a);
#else
  return a < low ? splat(low) : a;
#endif
}

FASTRNN_INLINE Vec<double> at_least(Vec<double> a, double low) { return a < low ? splat(low) : a; }

template <class C>
FASTRNN_INLINE Vec<C> load(const C* p) {
  Vec<C> v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

template <class C>
FASTRNN_INLINE void store(C* p, Vec<C> v) {
  __builtin_memcpy(p, &v, sizeof v);
}

// A bfloat16 is the upper half of a float.
struct Bf16 {
  uint16_t bits;
};

FASTRNN_INLINE Vec<float> load(const Bf16* p) {
#if FASTRNN_VECTOR_BYTES == 64  // GCC 12 makes three instructions of the conversion
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return (Vec<float>)((Bits<float>)_mm512_maskz_cvtepu16_epi32(0xFFFF, bits) << 16);
#else
  typedef uint16_t Halves __attribute__((vector_size(FASTRNN_VECTOR_BYTES / 2)));
  Halves bits;
  __builtin_memcpy(&bits, p, sizeof bits);
  return (Vec<float>)(__builtin_convertvector(bits, Bits<float>) << 16);
#endif
}

FASTRNN_INLINE Vec<float> load(const Bf16* p, int n) {
  Bf16 lanes[kLanes<float>] = {};
  for (int i = 0; i < n; ++i) lanes[i] = p[i];
  return load(lanes);
}

#if FASTRNN_VECTOR_BYTES == 32
// All bits of the first n of eight lanes of 32 bits.
FASTRNN_INLINE __m256i first_lanes(int n) {
  static constexpr int32_t kMask[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kMask + 8 - n));
}
#endif

// The first n lanes (0 <= n <= lanes); the others are zero.
template <class C>
FASTRNN_INLINE Vec<C> load(const C* p, int n) {
  if (n == kLanes<C>) return load(p);
#if FASTRNN_VECTOR_BYTES == 64
  if constexpr (sizeof(C) == 4) {
    return (Vec<C>)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
  } else {
    return (Vec<C>)_mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << n) - 1), p);
  }
#elif FASTRNN_VECTOR_BYTES == 32
  if constexpr (sizeof(C) == 4) {
    return (Vec<C>)_mm256_maskload_ps(p, first_lanes(n));
  } else {
    return (Vec<C>)_mm256_maskload_pd(p, first_lanes(2 * n));
  }
#else
  C lanes[kLanes<C>] = {};
  for (int i = 0; i < n; ++i) lanes[i] = p[i];
  return load(lanes);
#endif
}

template <class C>
FASTRNN_INLINE void store(C* p, Vec<C> v, int n) {
  if (n == kLanes<C>) return store(p, v);
#if FASTRNN_VECTOR_BYTES == 64
  if constexpr (sizeof(C) == 4) {
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), (__m512)v);
  } else {
    _mm512_mask_storeu_pd(p, static_cast<__mmask8>((1u << n) - 1), (__m512d)v);
  }
#elif FASTRNN_VECTOR_BYTES == 32
  // By halves, quarters and eighths: a store under a mask takes AMD's CPUs some twenty cycles.
  const int words = n * static_cast<int>(sizeof(C) / 4);
  char* to = reinterpret_cast<char*>(p);
  __m128i part = _mm256_castsi256_si128((__m256i)v);
  if (words & 4) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), part);
    part = _mm256_extracti128_si256((__m256i)v, 1);
    to += 16;
  }
  if (words & 2) {
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), part);
    part = _mm_unpackhi_epi64(part, part);
    to += 8;
  }
  if (words & 1) {
    const int32_t word = _mm_cvtsi128_si32(part);
    __builtin_memcpy(to, &word, sizeof word);
  }
#else
  C lanes[kLanes<C>];
  store(lanes, v);
  for (int i = 0; i < n; ++i) p[i] = lanes[i];
#endif
}
