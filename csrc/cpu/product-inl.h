// The one matrix product of the engine: rows times packed panels, in registers. Every sum runs over k in order, one
// fused multiply-add at a time, whatever the tile, so a row's result depends neither on the rows beside it nor on who
// computes it. Included once per instruction set inside FASTRNN_NS.
//
// A panel is kVecs vectors of columns: w[k][v][lane], a lane as `Lane` has it. `Finish` says where a row's sums go:
// finish(sums, row, panel) adds them to what they belong to, which finish.prefetch(row, panel) has asked for before the
// sums were computed.

// What a lane of a panel holds, and how the elements of a row meet it: here one weight for one element. Pairs of
// bfloat16 are in dot-inl.h.
template <class C>
struct Whole {
  using Element = C;                   // of the rows
  static constexpr int kElements = 1;  // of a row, that meet one lane
  static FASTRNN_INLINE Vec<C> column(const C* w, int) { return load(w); }
  static FASTRNN_INLINE Vec<C> spread(C element) { return splat(element); }
  static FASTRNN_INLINE Vec<C> add(Vec<C> element, Vec<C> column, Vec<C> sum) { return fma(element, column, sum); }
};

// Two weights of bfloat16, widened for elements that are float: the same sums as of whole ones, for half the memory.
struct Halves : Whole<float> {
  static constexpr int kElements = 2;
  static FASTRNN_INLINE Vec<float> column(const float* w, int element) {
    const Bits<float> pair = (Bits<float>)load(w);
    return (Vec<float>)(element == 0 ? pair << 16 : pair & -0x10000);
  }
};

// Rows of which K elements count, from `offset` on.
template <class C>
struct Factor {
  const C* const* rows;
  int64_t n, offset, K;
  FASTRNN_INLINE const C* row(int64_t i) const { return rows[i] + offset; }
};

// `ahead` is fetched alongside, a cache line a lane: large weights come from the third-level cache, and the next panel
// should have arrived by the time its turn comes.
template <class Lane, class C, int R, int kVecs>
FASTRNN_INLINE void accumulate(Vec<C> (&acc)[R][kVecs], const typename Lane::Element* const (&row)[R], int64_t k,
                               int64_t end, const C* w, const C* ahead) {
  for (; k < end; k += Lane::kElements, w += kVecs * kLanes<C>, ahead += kVecs * kLanes<C>) {
    if constexpr (R >= Tiles::fetching) __builtin_prefetch(ahead, 0, 2);
    if constexpr (R >= Tiles::fetching && Tiles::ahead > 0) {
      for (int v = 0; v < kVecs; ++v) __builtin_prefetch(w + (Tiles::ahead * kVecs + v) * kLanes<C>, 0, 3);
    }
    for (int e = 0; e < Lane::kElements && k + e < end; ++e) {
      if constexpr (kVecs <= R) {
        Vec<C> column[kVecs];
        for (int v = 0; v < kVecs; ++v) column[v] = Lane::column(w + v * kLanes<C>, e);
        for (int r = 0; r < R; ++r) {
          const Vec<C> element = Lane::spread(row[r][k + e]);
          for (int v = 0; v < kVecs; ++v) acc[r][v] = Lane::add(element, column[v], acc[r][v]);
        }
      } else {
        Vec<C> element[R];
        for (int r = 0; r < R; ++r) element[r] = Lane::spread(row[r][k + e]);
        for (int v = 0; v < kVecs; ++v) {
          const Vec<C> column = Lane::column(w + v * kLanes<C>, e);
          for (int r = 0; r < R; ++r) acc[r][v] = Lane::add(element[r], column, acc[r][v]);
        }
      }
    }
  }
}

// A sum's rounding errors grow with its length: after every kBlock terms the sum so far is set aside, and the next
// block starts from zero.
constexpr int64_t kBlock = 64;

// The sums of R rows from `first` on, into `sums` (R, kVecs). `next` is the panel whose turn comes: the first kVecs
// tiles of a panel fetch one line of every lane of it each, and later ones find it there.
template <class Lane, class C, int R, int kVecs, class A>
__attribute__((noinline)) void tile(const A& a, const C* w, const C* next, int64_t first, Vec<C>* sums) {
  const C* ahead = next + (first / R < kVecs ? first / R : kVecs - 1) * kLanes<C>;
  const typename Lane::Element* row[R];
  for (int r = 0; r < R; ++r) row[r] = a.row(first + r);
  int64_t k = 0;
  do {
    const int64_t at = k / Lane::kElements * kVecs * kLanes<C>, end = std::min(a.K, k + kBlock);
    Vec<C> acc[R][kVecs] = {};
    accumulate<Lane, C, R, kVecs>(acc, row, k, end, w + at, ahead + at);
    for (int r = 0; r < R; ++r) {
      for (int v = 0; v < kVecs; ++v) sums[r * kVecs + v] = k == 0 ? acc[r][v] : sums[r * kVecs + v] + acc[r][v];
    }
    k = end;
  } while (k < a.K);
}

// A tile of n rows, n <= R.
template <class Lane, class C, int R, int kVecs, class A>
FASTRNN_INLINE void tile_of(int64_t n, const A& a, const C* w, const C* next, int64_t first, Vec<C>* sums) {
  if constexpr (R > 0) {
    if (n == R) return tile<Lane, C, R, kVecs>(a, w, next, first, sums);
    tile_of<Lane, C, R - 1, kVecs>(n, a, w, next, first, sums);
  }
}

// One row and two panels, for where the sums of one alone are too few to keep the multipliers busy. In tile()'s order.
template <class Lane, class C, int kVecs, class A>
__attribute__((noinline)) void two_panels(const A& a, const C* const (&w)[2], Vec<C>* sums) {
  const typename Lane::Element* const row = a.row(0);
  int64_t k = 0;
  do {
    const int64_t end = std::min(a.K, k + kBlock);
    const C* at[2];
    for (int i = 0; i < 2; ++i) at[i] = w[i] + k / Lane::kElements * kVecs * kLanes<C>;
    Vec<C> acc[2][kVecs] = {};
    for (int64_t j = k; j < end; j += Lane::kElements) {
      for (int e = 0; e < Lane::kElements && j + e < end; ++e) {
        const Vec<C> element = Lane::spread(row[j + e]);
        for (int i = 0; i < 2; ++i) {
          for (int v = 0; v < kVecs; ++v) {
            acc[i][v] = Lane::add(element, Lane::column(at[i] + v * kLanes<C>, e), acc[i][v]);
          }
        }
      }
      for (int i = 0; i < 2; ++i) at[i] += kVecs * kLanes<C>;
    }
    for (int i = 0; i < 2; ++i) {
      for (int v = 0; v < kVecs; ++v) sums[i * kVecs + v] = k == 0 ? acc[i][v] : sums[i * kVecs + v] + acc[i][v];
    }
    k = end;
  } while (k < a.K);
}

// The rows of `a` times panels [p0, p1) of w (`apart` elements apart), in tiles of about the same number of rows: a
// last tile of one or two would read the panel for little work. Step after step reads the same weights; where they do
// not fit the cache, going through them back and forth finds the half there that was read last.
template <class Lane, class C, int kVecs, class A, class Finish>
void product(const A& a, const C* w, int64_t apart, int64_t p0, int64_t p1, bool back, const Finish& finish) {
  constexpr int64_t kMost = std::min(Tiles::accumulators / kVecs, Tiles::rows);
  const int64_t tiles = (a.n + kMost - 1) / kMost;
  Vec<C> sums[std::max<int64_t>(kMost, 2) * kVecs];
  for (int64_t i = 0; i < p1 - p0; ++i) {
    const int64_t p = back ? p1 - 1 - i : p0 + i, after = back ? p - 1 : p + 1;
    const bool last = i + 1 == p1 - p0;
    const C *panel = w + p * apart, *next = last ? panel : w + after * apart;
    if ((kVecs < 4 || Lane::kElements > 1) && a.n == 1 && !last) {
      finish.prefetch(0, p);
      finish.prefetch(0, after);
      two_panels<Lane, C, kVecs>(a, {panel, next}, sums);
      finish(sums, 0, p);
      finish(sums + kVecs, 0, after);
      ++i;
      continue;
    }
    for (int64_t j = 0, row = 0; j < tiles; ++j) {
      const int64_t n = (a.n - row + tiles - j - 1) / (tiles - j);
      for (int64_t r = 0; r < n; ++r) finish.prefetch(row + r, p);
      tile_of<Lane, C, kMost, kVecs>(n, a, panel, next, row, sums);
      for (int64_t r = 0; r < n; ++r) finish(sums + r * kVecs, row + r, p);
      row += n;
    }
  }
}

// Plain columns, kPlainVecs vectors a panel: out[row][column] (+)= sum.
constexpr int kPlainVecs = 4;

template <class C>
constexpr int64_t plain_panels(int64_t n) {
  return (n + kPlainVecs * kLanes<C> - 1) / (kPlainVecs * kLanes<C>);
}

// Lanes of a vector that starts at column `at` of `n`.
template <class C>
FASTRNN_INLINE int lanes_at(int64_t at, int64_t n) {
  const int64_t left = n - at;
  return left >= kLanes<C> ? kLanes<C> : left > 0 ? static_cast<int>(left) : 0;
}

template <class C>
FASTRNN_INLINE void fetch(const C* p) {
  __builtin_prefetch(p, 1, 3);
}

// Write the sums, or add them to what `out` holds: then the order of two such sums is no matter.
template <class C>
struct StoreAt {
  C* const* out;
  int64_t n;
  bool add;
  FASTRNN_INLINE void prefetch(int64_t row, int64_t panel) const {
    for (int v = 0; v < kPlainVecs; ++v) fetch(out[row] + (panel * kPlainVecs + v) * kLanes<C>);
  }
  FASTRNN_INLINE void operator()(const Vec<C>* acc, int64_t row, int64_t panel) const {
    for (int v = 0; v < kPlainVecs; ++v) {
      const int64_t at = (panel * kPlainVecs + v) * kLanes<C>;
      const int lanes = lanes_at<C>(at, n);
      if (lanes == 0) break;
      store(out[row] + at, add ? load(out[row] + at, lanes) + acc[v] : acc[v], lanes);
    }
  }
};

// A factor's rows in backward: K elements, and K2 more from `second` on (of a GRU's columns, n is left out).
struct Runs {
  int64_t K = 0, second = 0, K2 = 0;
};

// What of a factor's rows is used at a time, so that those of a whole batch stay in the second-level cache.
constexpr int64_t kDepth = 1024;

#ifndef FASTRNN_BF16
// Vectors of panel `panel` of n columns: of the last one there may be fewer, and it is packed as narrow.
template <class C>
constexpr int plain_vecs(int64_t panel, int64_t n) {
  const int64_t left = (n + kLanes<C> - 1) / kLanes<C> - panel * kPlainVecs;
  return static_cast<int>(left < kPlainVecs ? left : kPlainVecs);
}

// Rows times panels [p0, p1) of the n plain columns of w, from its lanes k on, of K.
template <class Lane, class C, class Finish>
void plain_panels_product(const Factor<C>& a, const C* w, int64_t k, int64_t K, int64_t n, int64_t p0, int64_t p1,
                          bool back, const Finish& finish) {
  const auto panels = [&]<int kVecs>(int64_t first, int64_t end) {
    product<Lane, C, kVecs>(a, w + k * kVecs * kLanes<C>, K * kPlainVecs * kLanes<C>, first, end, back, finish);
  };
  const int last = p0 < p1 ? plain_vecs<C>(p1 - 1, n) : kPlainVecs;
  if (last < kPlainVecs) --p1;
  panels.template operator()<kPlainVecs>(p0, p1);
  static_assert(kPlainVecs == 4);
  if (last == 3) panels.template operator()<3>(p1, p1 + 1);
  if (last == 2) panels.template operator()<2>(p1, p1 + 1);
  if (last == 1) panels.template operator()<1>(p1, p1 + 1);
}

// out (+)= rows times plain panels [p0, p1).
template <class C>
void plain_product(const C* const* rows, int64_t n, const Runs& runs, const C* w, int64_t p0, int64_t p1, bool back,
                   char*, StoreAt<C> out) {
  const int64_t all = runs.K + runs.K2;
  for (int64_t k = 0; k < all;) {
    const int64_t end = k < runs.K ? runs.K : all, K = end - k < kDepth ? end - k : kDepth;
    const Factor<C> part{rows, n, k < runs.K ? k : k - runs.K + runs.second, K};
    plain_panels_product<Whole<C>, C>(part, w, k, all, out.n, p0, p1, back, out);
    out.add = true;
    k += K;
  }
}
#endif

#if FASTRNN_VECTOR_BYTES == 64
FASTRNN_INLINE Vec<float> permute(Vec<float> a, Bits<float> which, Vec<float> b) {
  return (Vec<float>)_mm512_permutex2var_ps((__m512)a, (__m512i)which, (__m512)b);
}
FASTRNN_INLINE Vec<double> permute(Vec<double> a, Bits<double> which, Vec<double> b) {
  return (Vec<double>)_mm512_permutex2var_pd((__m512d)a, (__m512i)which, (__m512d)b);
}

// Of a square's rows a and b, which are kDistance apart: exchange a's blocks of kDistance lanes of odd number with b's
// of even number.
template <int kDistance, class C>
FASTRNN_INLINE void exchange(Vec<C>& a, Vec<C>& b) {
  constexpr int kN = kLanes<C>;
  Bits<C> low, high;  // where the lanes of the two new rows come from; the second row's lanes count from kN
  for (int l = 0; l < kN; ++l) {
    low[l] = l & kDistance ? kN + l - kDistance : l;
    high[l] = l & kDistance ? kN + l : l + kDistance;
  }
  const Vec<C> first = a;
  a = permute(first, low, b);
  b = permute(first, high, b);
}
#elif FASTRNN_VECTOR_BYTES == 32
template <int kDistance, class C>
FASTRNN_INLINE void exchange(Vec<C>& a, Vec<C>& b) {
  const __m256d first = (__m256d)a, second = (__m256d)b;
  if constexpr (kDistance * sizeof(C) == 16) {
    a = (Vec<C>)_mm256_permute2f128_pd(first, second, 0x20);
    b = (Vec<C>)_mm256_permute2f128_pd(first, second, 0x31);
  } else if constexpr (kDistance * sizeof(C) == 8) {
    a = (Vec<C>)_mm256_unpacklo_pd(first, second);
    b = (Vec<C>)_mm256_unpackhi_pd(first, second);
  } else {
    const __m256 odd = _mm256_movehdup_ps((__m256)first);
    a = (Vec<C>)_mm256_blend_ps((__m256)first, _mm256_moveldup_ps((__m256)second), 0xAA);
    b = (Vec<C>)_mm256_blend_ps(odd, (__m256)second, 0xAA);
  }
}
#endif

#if FASTRNN_VECTOR_BYTES >= 32
// Transpose a square of vectors in registers, by exchanging ever larger blocks: lane l of row i goes to lane i of row
// l.
template <class C, int kDistance = 1>
FASTRNN_INLINE void transpose(Vec<C>* rows) {
  for (int i = 0; i < kLanes<C>; ++i) {
    if (!(i & kDistance)) exchange<kDistance, C>(rows[i], rows[i + kDistance]);
  }
  if constexpr (kDistance * 2 < kLanes<C>) transpose<C, kDistance * 2>(rows);
}

// Two vectors as one: of each, groups of kBytes are added to their neighbours.
template <int kBytes, class C>
FASTRNN_INLINE Vec<C> add_neighbours(Vec<C> a, Vec<C> b) {
#if FASTRNN_VECTOR_BYTES == 64
  if constexpr (kBytes == 4) {
    const __m512 x = (__m512)a, y = (__m512)b;
    return (Vec<C>)_mm512_unpacklo_ps(x, y) + (Vec<C>)_mm512_unpackhi_ps(x, y);
  }
  const __m512d x = (__m512d)a, y = (__m512d)b;
  if constexpr (kBytes == 8) return (Vec<C>)_mm512_unpacklo_pd(x, y) + (Vec<C>)_mm512_unpackhi_pd(x, y);
  return (Vec<C>)_mm512_shuffle_f64x2(x, y, 0x88) + (Vec<C>)_mm512_shuffle_f64x2(x, y, 0xDD);
#else
  if constexpr (kBytes == 4) {
    const __m256 x = (__m256)a, y = (__m256)b;
    return (Vec<C>)_mm256_unpacklo_ps(x, y) + (Vec<C>)_mm256_unpackhi_ps(x, y);
  }
  const __m256d x = (__m256d)a, y = (__m256d)b;
  if constexpr (kBytes == 8) return (Vec<C>)_mm256_unpacklo_pd(x, y) + (Vec<C>)_mm256_unpackhi_pd(x, y);
  return (Vec<C>)_mm256_permute2f128_pd(x, y, 0x20) + (Vec<C>)_mm256_permute2f128_pd(x, y, 0x31);
#endif
}
#endif

// Sums of the lanes of a square of vectors: lane l of the result is the sum of rows[l].
template <class C, int kBytes = sizeof(C)>
FASTRNN_INLINE Vec<C> sums_of_lanes(Vec<C>* rows) {
#if FASTRNN_VECTOR_BYTES >= 32
  for (int i = 0; 2 * i * kBytes < FASTRNN_VECTOR_BYTES; ++i) {
    rows[i] = add_neighbours<kBytes, C>(rows[2 * i], rows[2 * i + 1]);
  }
  if constexpr (kBytes * 2 < FASTRNN_VECTOR_BYTES) return sums_of_lanes<C, kBytes * 2>(rows);
  return rows[0];
#else
  C sums[kLanes<C>];
  for (int l = 0; l < kLanes<C>; ++l) {
    C lanes[kLanes<C>];
    store(lanes, rows[l]);
    for (int n = kLanes<C> / 2; n > 0; n /= 2) {
      for (int i = 0; i < n; ++i) lanes[i] += lanes[i + n];
    }
    sums[l] = lanes[0];
  }
  return load(sums);
#endif
}

// a[r] w' for one vector of columns and one or two rows: lane l of out[r] is the product of a[r] and row l of w (rows K
// apart; of the `lanes` there are), whose weights W are C or Bf16. The sums of a row are the same beside another.
template <class C, int kRows, class W>
FASTRNN_INLINE void dots(const C* const* a, const W* w, int64_t K, int lanes, Vec<C>* out) {
  constexpr int kColumns = kLanes<C> / kRows;  // at a time: as many sums as a vector has lanes
  C found[kRows][kLanes<C>];
  for (int first = 0; first < kLanes<C>; first += kColumns) {
    const W* row[kColumns];
    for (int l = 0; l < kColumns; ++l) row[l] = w + (first + l < lanes ? first + l : 0) * K;
    Vec<C> sum[kLanes<C>] = {};
    constexpr int kStreams = kColumns < 8 ? kColumns : 8;  // more at a time, and the CPU does not see them coming
    for (int begin = 0; begin < kColumns; begin += kStreams) {
      int64_t k = 0;
      for (; k + kLanes<C> <= K; k += kLanes<C>) {
        Vec<C> factor[kRows];
        for (int r = 0; r < kRows; ++r) factor[r] = load(a[r] + k);
        for (int l = begin; l < begin + kStreams; ++l) {
          const Vec<C> weight = load(row[l] + k);
          for (int r = 0; r < kRows; ++r) sum[r * kColumns + l] = fma(factor[r], weight, sum[r * kColumns + l]);
        }
      }
      if (k < K) {
        const int rest = static_cast<int>(K - k);
        for (int l = begin; l < begin + kStreams; ++l) {
          const Vec<C> weight = load(row[l] + k, rest);
          for (int r = 0; r < kRows; ++r) {
            sum[r * kColumns + l] = fma(load(a[r] + k, rest), weight, sum[r * kColumns + l]);
          }
        }
      }
    }
    C both[kLanes<C>];
    store(both, sums_of_lanes<C>(sum));
    for (int r = 0; r < kRows; ++r) {
      for (int l = 0; l < kColumns; ++l) found[r][first + l] = both[r * kColumns + l];
    }
  }
  for (int r = 0; r < kRows; ++r) out[r] = load(found[r]);
}

// Copy a vector's columns into a panel: to[k * stride + lane] = from[lane * unit + k * column] for `lanes` lanes, zero
// in the others. A block of k at a time, so that rows are read a cache line at a time.
template <class C>
void pack_vector(const C* from, int64_t unit, int64_t column, int lanes, int64_t K, C* to, int64_t stride) {
  constexpr int64_t kSquare = kLanes<C>;
  for (int64_t k0 = 0; k0 < K; k0 += kSquare) {
    const int64_t k1 = k0 + kSquare < K ? k0 + kSquare : K;
    if (unit == 1) {
      for (int64_t k = k0; k < k1; ++k) store(to + k * stride, load(from + k * column, lanes));
      continue;
    }
#if FASTRNN_VECTOR_BYTES >= 32
    if (column == 1 && k1 - k0 == kSquare) {
      Vec<C> square[kLanes<C>];
      for (int lane = 0; lane < kLanes<C>; ++lane) {
        square[lane] = lane < lanes ? load(from + lane * unit + k0) : Vec<C>{};
      }
      transpose<C>(square);
      for (int64_t k = k0; k < k1; ++k) store(to + k * stride, square[k - k0]);
      continue;
    }
#endif
    for (int lane = 0; lane < kLanes<C>; ++lane) {
      const C* row = from + lane * unit;
      for (int64_t k = k0; k < k1; ++k) to[k * stride + lane] = lane < lanes ? row[k * column] : C(0);
    }
  }
}

#ifndef FASTRNN_BF16
template <class C>
void pack_plain(const C* w, int64_t row, int64_t column, int64_t n, int64_t K, C* to) {
  for (int64_t panel = 0; panel < plain_panels<C>(n); ++panel, to += kPlainVecs * kLanes<C> * K) {
    const int vecs = plain_vecs<C>(panel, n);
    for (int v = 0; v < vecs; ++v) {
      const int64_t at = (panel * kPlainVecs + v) * kLanes<C>;
      pack_vector(w + at * column, column, row, lanes_at<C>(at, n), K, to + v * kLanes<C>, vecs * kLanes<C>);
    }
  }
}

template <class C>
int64_t plain_panels_size(int64_t n, int64_t K) {
  return plain_panels<C>(n) * kPlainVecs * kLanes<C> * K;
}
#endif
