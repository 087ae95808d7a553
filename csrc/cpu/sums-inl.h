// Sums over the rows of a chunk, which the gradients of weights are: dG' x and dG' h_prev, a block of rows at a time by
// outer products in registers, and the columns of dG for the biases. Every sum runs over the rows in order, whatever
// the tile, so the gradients do not depend on who computes which of them. Included once per instruction set inside
// FASTRNN_NS.
//
// x and h_prev are columns of the same panels, [panel][row][vector][lane], which all shares read; who multiplies gate
// gradients by them packs a few of their columns at a time.

// The sum of each column [c0, c1) of n rows, on top of `to`: of blocks of rows in C, and of those in double, so that no
// sum is long.
template <class C>
void sum_columns(const C* rows, int64_t n, int64_t row, int64_t c0, int64_t c1, double* to) {
  constexpr int64_t kRows = 32, kColumns = kPlainVecs * kLanes<C>;
  for (int64_t column = c0; column < c1; column += kColumns) {
    for (int64_t r0 = 0; r0 < n; r0 += kRows) {
      Vec<C> sum[kPlainVecs] = {};
      for (int64_t r = r0; r < n && r < r0 + kRows; ++r) {
        for (int v = 0; v < kPlainVecs; ++v) {
          const int64_t at = column + v * kLanes<C>;
          sum[v] = sum[v] + load(rows + r * row + at, lanes_at<C>(at, c1));
        }
      }
      C block[kColumns];
      for (int v = 0; v < kPlainVecs; ++v) store(block + v * kLanes<C>, sum[v]);
      for (int64_t i = column; i < c1 && i < column + kColumns; ++i) to[i] += static_cast<double>(block[i - column]);
    }
  }
}

constexpr int64_t kSumColumns =
    96;  // gates' columns that are packed at a time: with a panel, for the second-level cache
#ifdef FASTRNN_BF16
constexpr int kSumVecs = kPlainVecs;  // of a panel
#else
constexpr int kSumVecs = 2;
#endif

template <class C>
constexpr int64_t kSumWidth = kSumVecs * kLanes<C>;

template <class C>
constexpr int64_t sum_panels(int64_t columns) {
  return (columns + kSumWidth<C> - 1) / kSumWidth<C>;
}

// Columns of a row of x and h_prev side by side, zero beyond the last.
template <class C>
FASTRNN_INLINE Vec<C> given_at(const Sums<C>& sums, int64_t row, int64_t at) {
  const C *const x = sums.x + row * sums.I, *const h = sums.h_prev + row * sums.H;
  if (at + kLanes<C> <= sums.I) return load(x + at);
  if (at >= sums.I) return load(h + (at - sums.I), lanes_at<C>(at, sums.I + sums.H));
  C both[kLanes<C>] = {};
  for (int64_t i = at; i < at + kLanes<C> && i < sums.I + sums.H; ++i) both[i - at] = i < sums.I ? x[i] : h[i - sums.I];
  return load(both);
}

// Write a row of sums, or add it to what is there.
template <class C>
struct StoreSums {
  C *ih, *hh;  // rows of the gradients from the first of the sums' on; null where none are wanted
  int64_t I, H;
  bool add;

  FASTRNN_INLINE void prefetch(int64_t row, int64_t panel) const {
    if (!add) return;
    for (int v = 0; v < kSumVecs; ++v) {
      const int64_t at = panel * kSumWidth<C> + v * kLanes<C>;
      C* const rows = at < I ? ih : hh;
      if (rows != nullptr) fetch(rows + (at < I ? row * I + at : row * H + at - I));
    }
  }

  FASTRNN_INLINE void operator()(const Vec<C>* sum, int64_t row, int64_t panel) const {
    const int64_t at = panel * kSumWidth<C>, end = at + kSumWidth<C>;
    if (end <= I || (at >= I && end <= I + H)) {
      C* const to = end <= I ? ih + (row * I + at) : hh + (row * H + at - I);
      for (int v = 0; v < kSumVecs; ++v) put(sum[v], to + v * kLanes<C>, kLanes<C>);
      return;
    }
    C both[kSumWidth<C>];
    for (int v = 0; v < kSumVecs; ++v) store(both + v * kLanes<C>, sum[v]);
    const int64_t begin = at < I ? I - at : 0;  // of the columns of h_prev
    if (at < I && ih != nullptr) some(both, begin, ih + (row * I + at));
    if (hh != nullptr) some(both + begin, (end < I + H ? end : I + H) - at - begin, hh + (row * H + at + begin - I));
  }

 private:
  FASTRNN_INLINE void put(Vec<C> sum, C* to, int lanes) const { store(to, add ? load(to, lanes) + sum : sum, lanes); }

  void some(const C* sums, int64_t n, C* to) const {
    for (int64_t i = 0; i < n; i += kLanes<C>) {
      const int lanes = lanes_at<C>(i, n);
      put(load(sums + i, lanes), to + i, lanes);
    }
  }
};

#ifdef FASTRNN_BF16
// Two rows of 16 columns as pairs of bfloat16.
inline Vec<float> pairs_of(Vec<float> even, Vec<float> odd) {
  typedef int16_t Which __attribute__((vector_size(64)));
  Which which;
  for (int l = 0; l < 16; ++l) which[2 * l] = static_cast<int16_t>(l), which[2 * l + 1] = static_cast<int16_t>(16 + l);
  return (Vec<float>)_mm512_permutexvar_epi16((__m512i)which, (__m512i)_mm512_cvtne2ps_pbh((__m512)odd, (__m512)even));
}

template <class C>
constexpr int64_t factors_size(int64_t columns, int64_t n) {
  return sum_panels<C>(columns) * tiles_size(kSumVecs, n);
}

template <class C>
constexpr int64_t sum_memory(int64_t n) {
  return tile_rows_size(kSumColumns, n);
}

template <class C>
void pack_factors(const Sums<C>& sums, int64_t p0, int64_t p1) {
  const int64_t n = sums.n, rows = tile_blocks(n) * kTileFactors;
  C* to = sums.factors + p0 * tiles_size(kSumVecs, n);
  for (int64_t p = p0; p < p1; ++p) {
    for (int64_t r = 0; r < rows; r += 2) {
      for (int64_t at = p * kSumWidth<C>; at < (p + 1) * kSumWidth<C>; at += kLanes<C>, to += kLanes<C>) {
        const Vec<C> zeros{};
        store(to, pairs_of(r < n ? given_at(sums, r, at) : zeros, r + 1 < n ? given_at(sums, r + 1, at) : zeros));
      }
    }
  }
}

// Columns of dG as rows of tiles: 16 columns of 32 rows at a time.
inline TileRows gates_as_rows(const Sums<float>& sums, int64_t column, int64_t columns, char* memory) {
  const int64_t n = sums.n, blocks = tile_blocks(n), stride = tile_stride(n);
  for (int64_t c = 0; c < columns; c += kTileRows) {
    const int lanes = lanes_at<float>(c, columns);
    for (int64_t r0 = 0; r0 < n; r0 += kTileFactors) {
      const auto row = [&](int64_t r) {
        return r < n ? load(sums.dgates + r * sums.width + column + c, lanes) : Vec<float>{};
      };
      Vec<float> square[kTilePairs];
      for (int64_t pair = 0; pair < kTilePairs; ++pair)
        square[pair] = pairs_of(row(r0 + 2 * pair), row(r0 + 2 * pair + 1));
      transpose<float>(square);
      char* const to = memory + c * stride + r0 * int64_t{sizeof(uint16_t)};
      for (int64_t l = 0; l < kTileRows; ++l) store(reinterpret_cast<float*>(to + l * stride), square[l]);
    }
  }
  return {memory, columns, n, blocks, stride};
}

// The sums of a few columns of dG, times panels [p0, p1).
template <class C>
void multiply_sums(const Sums<C>& sums, int64_t column, int64_t columns, int64_t p0, int64_t p1, char* memory,
                   const StoreSums<C>& to) {
  tile_product<kSumVecs>(gates_as_rows(sums, column, columns, memory), sums.factors, p0, p1, false, to);
}
#else
constexpr int kSumTile = Tiles::accumulators >= 24 ? 12 : 6;  // columns of dG that are multiplied at a time

template <class C>
constexpr int64_t factors_size(int64_t columns, int64_t n) {
  return (columns + kLanes<C> - 1) / kLanes<C> * kLanes<C> * n;
}

template <class C>
constexpr int64_t sum_memory(int64_t n) {
  return kSumColumns * n * int64_t{sizeof(C)};
}

template <class C>
void pack_factors(const Sums<C>& sums, int64_t p0, int64_t p1) {
  const int64_t columns = sums.I + sums.H;
  C* to = sums.factors + p0 * kSumWidth<C> * sums.n;
  for (int64_t p = p0; p < p1; ++p) {
    const int64_t end = (p + 1) * kSumWidth<C> < columns ? (p + 1) * kSumWidth<C> : columns;
    for (int64_t r = 0; r < sums.n; ++r) {
      for (int64_t at = p * kSumWidth<C>; at < end; at += kLanes<C>, to += kLanes<C>) store(to, given_at(sums, r, at));
    }
  }
}

// A few columns of dG: [tile][row][column], zero beyond the last.
template <class C>
void pack_gates(const Sums<C>& sums, int64_t column, int64_t columns, C* to) {
  const int64_t n = sums.n, whole = columns / kSumTile * kSumTile;
  for (int64_t r = 0; r < n; ++r) {
    const C* const from = sums.dgates + r * sums.width + column;
    C* tile = to + r * kSumTile;
    for (int64_t c = 0; c < whole; c += kSumTile, tile += kSumTile * n)
      __builtin_memcpy(tile, from + c, kSumTile * sizeof(C));
    if (whole == columns) continue;
    for (int64_t c = 0; c < kSumTile; ++c) tile[c] = whole + c < columns ? from[whole + c] : C(0);
  }
}

template <int kVecs, class C>
FASTRNN_INLINE void add_outer(Vec<C> (&sum)[kSumTile][kSumVecs], const C* gates, const C* given, int64_t n) {
  for (int64_t r = 0; r < n; ++r, gates += kSumTile, given += kVecs * kLanes<C>) {
    Vec<C> right[kVecs];
    for (int v = 0; v < kVecs; ++v) right[v] = load(given + v * kLanes<C>);
    for (int c = 0; c < kSumTile; ++c) {
      const Vec<C> left = splat(gates[c]);
      for (int v = 0; v < kVecs; ++v) sum[c][v] = fma(left, right[v], sum[c][v]);
    }
  }
}

// As in product-inl.h, the sum so far is set aside after every kBlock terms.
template <int kVecs, class C>
__attribute__((noinline)) void sum_tile(const C* gates, const C* given, int64_t n, int64_t first, int64_t columns,
                                        int64_t panel, const StoreSums<C>& to) {
  for (int64_t c = 0; c < columns; ++c) to.prefetch(first + c, panel);
  Vec<C> sum[kSumTile][kSumVecs] = {};
  add_outer<kVecs, C>(sum, gates, given, n < kBlock ? n : kBlock);
  for (int64_t r = kBlock; r < n; r += kBlock) {
    Vec<C> block[kSumTile][kSumVecs] = {};
    add_outer<kVecs, C>(block, gates + r * kSumTile, given + r * kVecs * kLanes<C>, n - r < kBlock ? n - r : kBlock);
    for (int c = 0; c < kSumTile; ++c) {
      for (int v = 0; v < kVecs; ++v) sum[c][v] = sum[c][v] + block[c][v];
    }
  }
  if (columns == kSumTile) {
    for (int c = 0; c < kSumTile; ++c) to(sum[c], first + c, panel);
  } else {
    for (int64_t c = 0; c < columns; ++c) to(sum[c], first + c, panel);
  }
}

// The sums of a few columns of dG, times panels [p0, p1).
template <class C>
void multiply_sums(const Sums<C>& sums, int64_t column, int64_t columns, int64_t p0, int64_t p1, char* memory,
                   const StoreSums<C>& to) {
  C* const gates = reinterpret_cast<C*>(memory);
  pack_gates(sums, column, columns, gates);
  for (int64_t p = p0; p < p1; ++p) {
    const C* const panel = sums.factors + p * kSumWidth<C> * sums.n;
    const bool whole = sums.I + sums.H - p * kSumWidth<C> > kLanes<C>;
    for (int64_t c = 0; c < columns; c += kSumTile) {
      const int64_t some = columns - c < kSumTile ? columns - c : kSumTile;
      if (whole) {
        sum_tile<kSumVecs, C>(gates + c * sums.n, panel, sums.n, c, some, p, to);
      } else {
        sum_tile<1, C>(gates + c * sums.n, panel, sums.n, c, some, p, to);
      }
    }
  }
}
#endif

template <class C>
void add_sums(const Sums<C>& sums, int64_t c0, int64_t c1, C* ih, C* hh, char* memory) {
  const int64_t I = sums.I, H = sums.H;
  const int64_t p0 = ih != nullptr ? 0 : I / kSumWidth<C>, p1 = sum_panels<C>(hh != nullptr ? I + H : I);
  for (int64_t c = c0; c < c1; c += kSumColumns) {
    const int64_t columns = c1 - c < kSumColumns ? c1 - c : kSumColumns;
    const StoreSums<C> to{ih != nullptr ? ih + (c - c0) * I : nullptr, hh != nullptr ? hh + (c - c0) * H : nullptr, I,
                          H, sums.add};
    multiply_sums(sums, c, columns, p0, p1, memory, to);
  }
}
