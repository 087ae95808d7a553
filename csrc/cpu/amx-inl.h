// Products of bfloat16 by AMX, tiles of 16 rows by 32 factors: what product-inl.h does, for weights that are bfloat16.
// The factor's rows are rounded to bfloat16 first, as a bfloat16 layer's states and gradients are; sums are float. A
// row's result depends on its row of the tile alone. Included in the amx variant only, inside FASTRNN_NS.
//
// Panels: [32 factors][vector] tiles of 16 pairs of factors by 16 columns, a tile in 1 KiB, zero beyond the last.

constexpr int64_t kTileFactors = 32, kTileRows = 16, kTileBytes = 1024;

constexpr int64_t tile_blocks(int64_t K) { return (K + kTileFactors - 1) / kTileFactors; }

// Elements of C that a panel takes.
constexpr int64_t tiles_size(int vectors, int64_t K) {
  return tile_blocks(K) * vectors * kTileBytes / static_cast<int64_t>(sizeof(float));
}

// Rows in bfloat16 for the tiles: (n, K) up to whole tiles, zero beyond K. One buffer a thread, used until the product
// is done.
struct TileRows {
  const char* rows;
  int64_t n, blocks, stride;  // stride: bytes
};

inline void round_to_tiles(const float* from, int64_t n, uint16_t* to) {
  for (int64_t k = 0; k < n; k += kLanes<float>) {
    const int lanes = lanes_at<float>(k, n);
    _mm256_mask_storeu_epi16(to + k, static_cast<__mmask16>((1u << lanes) - 1),
                             (__m256i)_mm512_cvtneps_pbh((__m512)load(from + k, lanes)));
  }
}

inline TileRows tile_rows(const float* const* rows, int64_t n, const Runs& runs) {
  struct Buffer {
    char* data = nullptr;
    int64_t size = 0;
    ~Buffer() { std::free(data); }
  };
  thread_local Buffer buffer;
  const int64_t blocks = tile_blocks(runs.K + runs.K2);
  // An odd number of cache lines: at 4 KiB and its multiples all rows of a tile would share one set of the cache.
  const int64_t stride = (blocks | 1) * 64, padded = (n + kTileRows - 1) / kTileRows * kTileRows;
  if (buffer.size < padded * stride) {
    std::free(buffer.data);
    buffer.size = 0;
    buffer.data = static_cast<char*>(std::aligned_alloc(64, static_cast<size_t>(padded * stride)));
    if (buffer.data == nullptr) throw std::bad_alloc();
    buffer.size = padded * stride;
    std::memset(buffer.data, 0, static_cast<size_t>(buffer.size));
  }
  for (int64_t i = 0; i < n; ++i) {
    uint16_t* const to = reinterpret_cast<uint16_t*>(buffer.data + i * stride);
    round_to_tiles(rows[i], runs.K, to);
    round_to_tiles(rows[i] + runs.second, runs.K2, to + runs.K);
    for (int64_t k = runs.K + runs.K2; k < blocks * kTileFactors; ++k) to[k] = 0;
  }
  return {buffer.data, n, blocks, stride};
}

// 32 rows, or 16, times kVecs tiles of columns into c, (rows, kVecs * 16). Tiles 0 … hold the sums; eight there are.
template <int kVecs>
void rows_32(const TileRows& a, int64_t row, const char* w, float* c) {
  constexpr int64_t kApart = kVecs * 64;  // bytes from row to row of c
  const char *a0 = a.rows + row * a.stride, *a1 = a0 + kTileRows * a.stride;
  if constexpr (kVecs == 3) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_zero(4);
    _tile_zero(5);
    for (int64_t k = 0; k < a.blocks; ++k, w += 3 * kTileBytes) {
      _tile_loadd(6, a0 + k * 64, a.stride);
      _tile_loadd(7, w, 64);
      _tile_dpbf16ps(0, 6, 7);
      _tile_loadd(7, w + kTileBytes, 64);
      _tile_dpbf16ps(1, 6, 7);
      _tile_loadd(7, w + 2 * kTileBytes, 64);
      _tile_dpbf16ps(2, 6, 7);
      _tile_loadd(6, a1 + k * 64, a.stride);
      _tile_dpbf16ps(5, 6, 7);
      _tile_loadd(7, w, 64);
      _tile_dpbf16ps(3, 6, 7);
      _tile_loadd(7, w + kTileBytes, 64);
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
      const char* tile = w + v * kTileBytes;
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
      for (int64_t k = 0; k < a.blocks; ++k, tile += kVecs * kTileBytes) {
        _tile_loadd(4, a0 + k * 64, a.stride);
        _tile_loadd(5, a1 + k * 64, a.stride);
        _tile_loadd(6, tile, 64);
        _tile_loadd(7, tile + kTileBytes, 64);
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
void rows_16(const TileRows& a, int64_t row, const char* w, float* c) {
  constexpr int64_t kApart = kVecs * 64;
  const char* rows = a.rows + row * a.stride;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t k = 0; k < a.blocks; ++k, w += kVecs * kTileBytes) {
    _tile_loadd(4, rows + k * 64, a.stride);
    _tile_loadd(5, w, 64);
    _tile_loadd(6, w + kTileBytes, 64);
    _tile_loadd(7, w + 2 * kTileBytes, 64);
    _tile_dpbf16ps(0, 4, 5);
    _tile_dpbf16ps(1, 4, 6);
    _tile_dpbf16ps(2, 4, 7);
    if constexpr (kVecs == 4) {
      _tile_loadd(5, w + 3 * kTileBytes, 64);
      _tile_dpbf16ps(3, 4, 5);
    }
  }
  _tile_stored(0, c, kApart);
  _tile_stored(1, c + 16, kApart);
  _tile_stored(2, c + 32, kApart);
  if constexpr (kVecs == 4) _tile_stored(3, c + 48, kApart);
}

// The rows times panels [p0, p1) of w; `finish` as in product().
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
    const char* panel = reinterpret_cast<const char*>(w + p * tiles_size(kVecs, a.blocks * kTileFactors));
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

// A tile from 16 rows of weights, 32 factors of each: pair k of row l goes to row k, column l.
inline void pack_tile_rows(const uint16_t* from, int64_t row, int lanes, int64_t factors, char* to) {
  const __mmask32 mask = factors >= 32 ? 0xFFFFFFFFu : (1u << factors) - 1;
  Vec<float> square[16];
  for (int l = 0; l < 16; ++l) {
    square[l] = l < lanes ? (Vec<float>)_mm512_maskz_loadu_epi16(mask, from + l * row) : Vec<float>{};
  }
  transpose<float>(square);
  for (int l = 0; l < 16; ++l) store(reinterpret_cast<float*>(to + l * 64), square[l]);
}

// A tile from 32 rows of weights, one a factor, 16 columns of each.
inline void pack_tile_columns(const uint16_t* from, int64_t row, int lanes, int64_t factors, char* to) {
  const __mmask16 mask = static_cast<__mmask16>((1u << lanes) - 1);
  for (int64_t pair = 0; pair < 16; ++pair) {
    __m512i both = _mm512_setzero_si512();
    for (int64_t half = 0; half < 2 && 2 * pair + half < factors; ++half) {
      const __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from + (2 * pair + half) * row));
      both = _mm512_or_si512(both, half ? _mm512_slli_epi32(wide, 16) : wide);
    }
    _mm512_storeu_si512(to + pair * 64, both);
  }
}

template <class C>
void pack_plain(const C* w, int64_t row, int64_t, int64_t n, int64_t K, C* to) {
  const uint16_t* const weights = reinterpret_cast<const uint16_t*>(w);
  for (int64_t p = 0; p < plain_panels<C>(n); ++p, to += tiles_size(kPlainVecs, K)) {
    for (int64_t block = 0; block < tile_blocks(K); ++block) {
      for (int v = 0; v < kPlainVecs; ++v) {
        const int64_t at = (p * kPlainVecs + v) * kLanes<C>, k = block * kTileFactors;
        pack_tile_columns(weights + k * row + at, row, lanes_at<C>(at, n), K - k,
                          reinterpret_cast<char*>(to) + (block * kPlainVecs + v) * kTileBytes);
      }
    }
  }
}

template <class C>
int64_t plain_panels_size(int64_t n, int64_t K) {
  return plain_panels<C>(n) * tiles_size(kPlainVecs, K);
}

template <class C>
void plain_product(const C* const* rows, int64_t n, const Runs& runs, const C* w, int64_t p0, int64_t p1, bool back,
                   const StoreAt<C>& out) {
  if (n > 0) tile_product<kPlainVecs>(tile_rows(rows, n, runs), w, p0, p1, back, out);
}
