// Products of bfloat16 by AMX, tiles of 16 rows by 32 factors: what product-inl.h does, for weights that are bfloat16.
// A row's result depends on its row of the tile alone. Included in the variant amx only, inside FASTRNN_NS.

constexpr int64_t kTile = kTilePairs * kLanes<float>;  // elements

// 32 rows, or 16, times kVecs tiles of columns into c, (rows, kVecs * 16). Tiles 0 … hold the sums; eight there are.
template <int kVecs>
void rows_32(const TileRows& a, int64_t row, const float* w, float* c) {
  constexpr int64_t kApart = kVecs * 64;  // bytes from row to row of c and from pair to pair of w
  const char *a0 = a.rows + row * a.stride, *a1 = a0 + kTileRows * a.stride;
  if constexpr (kVecs == 3) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_zero(4);
    _tile_zero(5);
    for (int64_t k = 0; k < a.blocks; ++k, w += 3 * kTile) {
      _tile_loadd(6, a0 + k * 64, a.stride);
      _tile_loadd(7, w, kApart);
      _tile_dpbf16ps(0, 6, 7);
      _tile_loadd(7, w + 16, kApart);
      _tile_dpbf16ps(1, 6, 7);
      _tile_loadd(7, w + 32, kApart);
      _tile_dpbf16ps(2, 6, 7);
      _tile_loadd(6, a1 + k * 64, a.stride);
      _tile_dpbf16ps(5, 6, 7);
      _tile_loadd(7, w, kApart);
      _tile_dpbf16ps(3, 6, 7);
      _tile_loadd(7, w + 16, kApart);
      _tile_dpbf16ps(4, 6, 7);
    }
    _tile_stored(0, c, kApart);
    _tile_stored(1, c + 16, kApart);
    _tile_stored(2, c + 32, kApart);
    c += kTileRows * kVecs * 16;
    _tile_stored(3, c, kApart);
    _tile_stored(4, c + 16, kApart);
    _tile_stored(5, c + 32, kApart);
  } else {
    for (int v = 0; v < kVecs; v += 2) {
      const float* tile = w + v * 16;
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
      for (int64_t k = 0; k < a.blocks; ++k, tile += kVecs * kTile) {
        _tile_loadd(4, a0 + k * 64, a.stride);
        _tile_loadd(5, a1 + k * 64, a.stride);
        _tile_loadd(6, tile, kApart);
        _tile_loadd(7, tile + 16, kApart);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
      float* const to = c + v * 16;
      _tile_stored(0, to, kApart);
      _tile_stored(1, to + 16, kApart);
      _tile_stored(2, to + kTileRows * kVecs * 16, kApart);
      _tile_stored(3, to + kTileRows * kVecs * 16 + 16, kApart);
    }
  }
}

template <int kVecs>
void rows_16(const TileRows& a, int64_t row, const float* w, float* c) {
  constexpr int64_t kApart = kVecs * 64;
  const char* rows = a.rows + row * a.stride;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t k = 0; k < a.blocks; ++k, w += kVecs * kTile) {
    _tile_loadd(4, rows + k * 64, a.stride);
    _tile_loadd(5, w, kApart);
    _tile_loadd(6, w + 16, kApart);
    _tile_loadd(7, w + 32, kApart);
    _tile_dpbf16ps(0, 4, 5);
    _tile_dpbf16ps(1, 4, 6);
    _tile_dpbf16ps(2, 4, 7);
    if constexpr (kVecs == 4) {
      _tile_loadd(5, w + 48, kApart);
      _tile_dpbf16ps(3, 4, 5);
    }
  }
  _tile_stored(0, c, kApart);
  _tile_stored(1, c + 16, kApart);
  _tile_stored(2, c + 32, kApart);
  if constexpr (kVecs == 4) _tile_stored(3, c + 48, kApart);
}

template <int kVecs, class Finish>
void tile_product(const TileRows& a, const float* w, int64_t p0, int64_t p1, bool back, const Finish& finish) {
  static_assert(kVecs == 3 || kVecs == 4);
  struct alignas(64) Config {
    uint8_t palette = 1, start = 0, unused[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  };
  static constexpr Config kConfig;
  alignas(64) float sums[2 * kTileRows * kVecs * 16];
  _tile_loadconfig(&kConfig);
  for (int64_t i = 0; i < p1 - p0; ++i) {
    const int64_t p = back ? p1 - 1 - i : p0 + i;
    const float* panel = w + p * tiles_size(kVecs, a.blocks * kTileFactors);
    for (int64_t row = 0; row < a.n; row += 2 * kTileRows) {
      const int64_t n = a.n - row < 2 * kTileRows ? a.n - row : 2 * kTileRows;
      for (int64_t r = 0; r < n; ++r) finish.prefetch(row + r, p);
      if (n > kTileRows) {
        rows_32<kVecs>(a, row, panel, sums);
      } else {
        rows_16<kVecs>(a, row, panel, sums);
      }
      for (int64_t r = 0; r < n; ++r) {
        Vec<float> sum[kVecs];
        for (int v = 0; v < kVecs; ++v) sum[v] = load(sums + (r * kVecs + v) * 16);
        finish(sum, row + r, p);
      }
    }
  }
  _tile_release();
}
