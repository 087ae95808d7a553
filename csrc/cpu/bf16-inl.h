// Products of bfloat16 weights: the factor's rows are rounded to bfloat16 first, as a bfloat16 layer's states and
// gradients are; sums are float. Here are the rows and the panels; the product itself is in amx-inl.h or dot-inl.h.
// Included in the variants amx and avx512bf16 only, inside FASTRNN_NS.
//
// Panels: [pair of factors][vector][column], a column's pair in 32 bits, zero beyond the last factor up to whole tiles
// of 16 pairs by 16 columns.

constexpr int64_t kTileFactors = 32, kTileRows = 16, kTilePairs = 16;

constexpr int64_t tile_blocks(int64_t K) { return (K + kTileFactors - 1) / kTileFactors; }

// Elements of C that a panel takes.
constexpr int64_t tiles_size(int vectors, int64_t K) { return tile_blocks(K) * kTilePairs * vectors * kLanes<float>; }

// Rows in bfloat16 for the tiles: (n, K) up to whole tiles, zero beyond K.
struct TileRows {
  const char* rows;
  int64_t n, K, blocks, stride;  // stride: bytes
};

inline void round_to_tiles(const float* from, int64_t n, uint16_t* to) {
  for (int64_t k = 0; k < n; k += kLanes<float>) {
    const int lanes = lanes_at<float>(k, n);
    _mm256_mask_storeu_epi16(to + k, static_cast<__mmask16>((1u << lanes) - 1),
                             (__m256i)_mm512_cvtneps_pbh((__m512)load(from + k, lanes)));
  }
}

// An odd number of cache lines: at 4 KiB and its multiples all rows of a tile would share one set of the cache.
constexpr int64_t tile_stride(int64_t K) { return (tile_blocks(K) | 1) * 64; }

constexpr int64_t tile_rows_size(int64_t n, int64_t K) {
  return (n + kTileRows - 1) / kTileRows * kTileRows * tile_stride(K);
}

// They are written to `buffer`, and used there until the product is done.
inline TileRows tile_rows(const float* const* rows, int64_t n, const Runs& runs, char* buffer) {
  const int64_t K = runs.K + runs.K2, blocks = tile_blocks(K), stride = tile_stride(K);
  for (int64_t i = 0; i < n; ++i) {
    uint16_t* const to = reinterpret_cast<uint16_t*>(buffer + i * stride);
    round_to_tiles(rows[i], runs.K, to);
    round_to_tiles(rows[i] + runs.second, runs.K2, to + runs.K);
    for (int64_t k = K; k < blocks * kTileFactors; ++k) to[k] = 0;
  }
  return {buffer, n, K, blocks, stride};
}

// A tile from 16 rows of weights, 32 factors of each: pair k of row l goes to to[k * stride + l].
inline void pack_tile_rows(const uint16_t* from, int64_t row, int lanes, int64_t factors, float* to, int64_t stride) {
  const __mmask32 mask = factors >= 32 ? 0xFFFFFFFFu : (1u << factors) - 1;
  Vec<float> square[16];
  for (int l = 0; l < 16; ++l) {
    square[l] = l < lanes ? (Vec<float>)_mm512_maskz_loadu_epi16(mask, from + l * row) : Vec<float>{};
  }
  transpose<float>(square);
  for (int l = 0; l < 16; ++l) store(to + l * stride, square[l]);
}

// A tile from 32 rows of weights, one a factor, 16 columns of each.
inline void pack_tile_columns(const uint16_t* from, int64_t row, int lanes, int64_t factors, float* to,
                              int64_t stride) {
  const __mmask16 mask = static_cast<__mmask16>((1u << lanes) - 1);
  for (int64_t pair = 0; pair < kTilePairs; ++pair) {
    __m512i both = _mm512_setzero_si512();
    for (int64_t half = 0; half < 2 && 2 * pair + half < factors; ++half) {
      const __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from + (2 * pair + half) * row));
      both = _mm512_or_si512(both, half ? _mm512_slli_epi32(wide, 16) : wide);
    }
    _mm512_storeu_si512(to + pair * stride, both);
  }
}

template <class C>
void pack_plain(const C* w, int64_t row, int64_t, int64_t n, int64_t K, C* to) {
  constexpr int64_t kStride = kPlainVecs * kLanes<C>;
  const uint16_t* const weights = reinterpret_cast<const uint16_t*>(w);
  for (int64_t p = 0; p < plain_panels<C>(n); ++p) {
    for (int64_t k = 0; k < K; k += kTileFactors, to += kTilePairs * kStride) {
      for (int v = 0; v < kPlainVecs; ++v) {
        const int64_t at = (p * kPlainVecs + v) * kLanes<C>;
        pack_tile_columns(weights + k * row + at, row, lanes_at<C>(at, n), K - k, to + v * kLanes<C>, kStride);
      }
    }
  }
}

template <class C>
int64_t plain_panels_size(int64_t n, int64_t K) {
  return plain_panels<C>(n) * tiles_size(kPlainVecs, K);
}

// The rows times panels [p0, p1) of w; `finish` as in product().
template <int kVecs, class Finish>
void tile_product(const TileRows& a, const float* w, int64_t p0, int64_t p1, bool back, const Finish& finish);

template <class C>
void plain_product(const C* const* rows, int64_t n, const Runs& runs, const C* w, int64_t p0, int64_t p1, bool back,
                   char* tiles, const StoreAt<C>& out) {
  if (n > 0) tile_product<kPlainVecs>(tile_rows(rows, n, runs, tiles), w, p0, p1, back, out);
}
