// Products of bfloat16 by vdpbf16ps, where there is no AMX: product-inl.h's tiles of registers, a pair of factors a
// lane. Included in the variant avx512bf16 only, inside FASTRNN_NS.

struct Pair {
  using Element = uint32_t;
  static constexpr int kElements = 1;
  static FASTRNN_INLINE Vec<float> column(const float* w, int) { return load(w); }
  static FASTRNN_INLINE Vec<float> spread(uint32_t pair) {
    return (Vec<float>)_mm512_set1_epi32(static_cast<int>(pair));
  }
  static FASTRNN_INLINE Vec<float> add(Vec<float> pair, Vec<float> column, Vec<float> sum) {
    return (Vec<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)pair, (__m512bh)column);
  }
};

struct Pairs {
  const TileRows& rows;
  int64_t n, K;
  FASTRNN_INLINE const uint32_t* row(int64_t i) const {
    return reinterpret_cast<const uint32_t*>(rows.rows + i * rows.stride);
  }
};

template <int kVecs, class Finish>
void tile_product(const TileRows& a, const float* w, int64_t p0, int64_t p1, bool back, const Finish& finish) {
  const int64_t apart = tiles_size(kVecs, a.K);
  product<Pair, float, kVecs>(Pairs{a, a.n, (a.K + 1) / 2}, w, apart, p0, p1, back, finish);
}
