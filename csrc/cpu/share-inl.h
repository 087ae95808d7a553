// What a share of a pass owns, and where the states before and after a step lie: common to forward and backward.
// Included once per instruction set inside FASTRNN_NS.

// Columns of a forward panel: vector v is gate v / kUnitVecs of units (panel * kUnitVecs + v % kUnitVecs) * lanes ….
template <class C, class CellT>
constexpr int64_t forward_panels(int64_t H) {
  return (H + CellT::kUnitVecs * kLanes<C> - 1) / (CellT::kUnitVecs * kLanes<C>);
}

template <class C, class CellT>
constexpr int kForwardVecs = CellT::kGates * CellT::kUnitVecs;

// Without gates, units are plain columns.
template <class CellT>
constexpr bool kPlainForward = CellT::kGates == 1 && CellT::kUnitVecs == kPlainVecs;

template <class C, class CellT>
struct Share {
  const Layer<C>& layer;
  const Direction<C>& dir;
  int d;
  int64_t rank0 = 0, rank1 = 0;    // ranks of rows
  int64_t panel0 = 0, panel1 = 0;  // forward panels
  int64_t plain0 = 0, plain1 = 0;  // plain panels of units (backward)
  int64_t unit0 = 0, unit1 = 0;    // the units of those panels
  char *scratch, *tiles;

  // Forward splits units by forward panels, the finest grain; backward by plain panels, which are whole forward panels.
  Share(const Layer<C>& l, int64_t index, int64_t turn, bool backward)
      : layer(l),
        dir(l.dir[l.plan.teams == 2 ? index / l.plan.team_shares : turn]),
        d(static_cast<int>(l.plan.teams == 2 ? index / l.plan.team_shares : turn)),
        scratch(l.scratch + index * l.plan.scratch),
        tiles(l.tiles + index * l.tiles_size) {
    const int64_t k = index % l.plan.team_shares, n = l.plan.team_shares, H = l.H;
    const int64_t forward = forward_panels<C, CellT>(H), plain = plain_panels<C>(H);
    const int64_t per_plain = kPlainVecs / CellT::kUnitVecs, forward_units = CellT::kUnitVecs * kLanes<C>;
    const bool rows = !l.plan.by_units;
    rank0 = rows ? l.seq.row_start[k] : 0;
    rank1 = rows ? l.seq.row_start[k + 1] : l.seq.B;
    plain0 = rows ? 0 : plain * k / n;
    plain1 = rows ? plain : plain * (k + 1) / n;
    if (backward) {
      panel0 = plain0 * per_plain;
      panel1 = plain1 * per_plain < forward ? plain1 * per_plain : forward;
    } else {
      panel0 = rows ? 0 : forward * k / n;
      panel1 = rows ? forward : forward * (k + 1) / n;
    }
    unit0 = panel0 * forward_units;
    unit1 = panel1 * forward_units < H ? panel1 * forward_units : H;
  }

  int64_t time(int64_t s) const { return dir.reverse ? layer.seq.T - 1 - s : s; }
  int64_t before(int64_t t) const { return dir.reverse ? t + 1 : t - 1; }
  int64_t ranks(int64_t t) const { return rank1 < layer.seq.alive[t] ? rank1 : layer.seq.alive[t]; }
  int64_t row(int64_t rank) const { return layer.seq.order[rank]; }

  // Is t the first step, or the last, that this direction processes of the row?
  bool begins(int64_t t, int64_t rank) const {
    return dir.reverse ? t == layer.seq.T - 1 || rank >= layer.seq.alive[t + 1] : t == 0;
  }
  bool ends(int64_t t, int64_t rank) const {
    return dir.reverse ? t == 0 : t == layer.seq.T - 1 || rank >= layer.seq.alive[t + 1];
  }
  // Is the state zeroed before the step that processes t? In reverse, a sequence that begins at t + 1 cuts there.
  bool cut(int64_t t, int64_t rank) const {
    if (dir.reverse) return !begins(t, rank) && layer.seq.resets(t + 1, row(rank));
    return layer.seq.resets(t, row(rank));
  }
  const C* initial(const C* state, int64_t b) const { return state ? state + b * layer.H : layer.zeros; }

  C* cells_at(int64_t t, int64_t b) const { return layer.cells.at(t, b) + d * layer.H; }
  const C* border(int64_t s, int64_t b) const { return dir.borders + (s / kLeanChunk * layer.seq.B + b) * layer.H; }
};

template <class C>
void copy(const C* from, C* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = from[i];
}

// f(gate, vector, column, lanes) for every vector of panel `panel`; column is where its sums belong in a row: in
// CellT::pre_column or, of x W_ih', as the gates are numbered.
template <class C, class CellT, bool kRecurrent, class F>
FASTRNN_INLINE void for_each_vector(int64_t panel, int64_t H, const F& f) {
  for (int u = 0; u < CellT::kUnitVecs; ++u) {
    const int64_t unit = (panel * CellT::kUnitVecs + u) * kLanes<C>;
    const int lanes = lanes_at<C>(unit, H);
    if (lanes == 0) break;
    const Columns columns = columns_of(unit, H, CellT::kWidth);
    for (int g = 0; g < CellT::kGates; ++g) {
      const int column = kRecurrent ? CellT::pre_column(g) : g;
      f(g, g * CellT::kUnitVecs + u, columns.at + column * columns.apart, lanes);
    }
  }
}

// x W_ih' + b into the pre-activations.
template <class C, class CellT>
struct StoreInput {
  C* const* out;
  const C* bias;
  int64_t H;
  FASTRNN_INLINE void prefetch(int64_t row, int64_t panel) const {
    for_each_vector<C, CellT, false>(panel, H, [&](int, int, int64_t column, int) { fetch(out[row] + column); });
  }
  FASTRNN_INLINE void operator()(const Vec<C>* sum, int64_t row, int64_t panel) const {
    for_each_vector<C, CellT, false>(panel, H, [&](int, int v, int64_t column, int lanes) {
      store(out[row] + column, load(bias + column, lanes) + sum[v], lanes);
    });
  }
};

// What a recurrent sum is added to: the input's part, or the bias where the gate wants its own sum.
template <class C, class CellT>
FASTRNN_INLINE Vec<C> with_input(Vec<C> sum, const C* pre, const C* bias, int gate, int64_t column, int lanes) {
  return load((CellT::from_bias(gate) ? bias : pre) + column, lanes) + sum;
}

// A block of rows on their way through the input product.
template <class C>
struct Block {
  const C* a[kBlockRows];
  C* out[kBlockRows];
  int64_t n = 0;
};

#ifndef FASTRNN_BF16
// Rows times forward weights as they lie, panels [panel0, panel1) of the share.
template <class C, class CellT, class W, class Finish>
void unpacked_product(const Share<C, CellT>& share, const C* const* a, int64_t rows, int64_t K, const W* w,
                      const Finish& finish) {
  constexpr int kVecs = kForwardVecs<C, CellT>;
  const int64_t H = share.layer.H;
  for (int64_t panel = share.panel0; panel < share.panel1; ++panel) {
    for (int64_t row = 0; row < rows; row += 2) {
      Vec<C> sum[2][kVecs];
      for (int v = 0; v < kVecs; ++v) {
        const int64_t unit = (panel * CellT::kUnitVecs + v % CellT::kUnitVecs) * kLanes<C>;
        const int lanes = lanes_at<C>(unit, H);
        if (lanes == 0) continue;
        const W* const weights = w + (v / CellT::kUnitVecs * H + unit) * K;
        Vec<C> found[2] = {};
        if (row + 1 < rows) {
          dots<C, 2>(a + row, weights, K, lanes, found);
        } else {
          dots<C, 1>(a + row, weights, K, lanes, found);
        }
        sum[0][v] = found[0], sum[1][v] = found[1];
      }
      for (int64_t r = row; r < rows && r < row + 2; ++r) finish(sum[r - row], r, panel);
    }
  }
}
#endif

// Rows times forward weights, panels [panel0, panel1) of the share. Of a single step the weights are read as they lie:
// to pack them would take longer than to use them once.
template <class C, class CellT, class Finish>
void forward_product(const Share<C, CellT>& share, const C* const* a, int64_t rows, int64_t K, const C* w, bool back,
                     const Finish& finish) {
  constexpr int kVecs = kForwardVecs<C, CellT>;
#ifdef FASTRNN_BF16
  tile_product<kVecs>(tile_rows(a, rows, Runs{K}, share.tiles), w, share.panel0, share.panel1, back, finish);
#else
  const Factor<C> factor{a, rows, 0, K};
  const auto packed_product = [&]<class Lane>(int64_t lanes) {
    const int64_t p0 = share.panel0, p1 = share.panel1;
    if constexpr (kPlainForward<CellT>) {
      plain_panels_product<Lane, C>(factor, w, 0, lanes, share.layer.H, p0, p1, back, finish);
    } else {
      product<Lane, C, kVecs>(factor, w, lanes * kVecs * kLanes<C>, p0, p1, back, finish);
    }
  };
  if constexpr (sizeof(C) == sizeof(float)) {
    if (share.layer.half_weights) {
      if (!share.layer.packed) return unpacked_product(share, a, rows, K, reinterpret_cast<const Bf16*>(w), finish);
      return packed_product.template operator()<Halves>((K + 1) / 2);
    }
  }
  if (!share.layer.packed) return unpacked_product(share, a, rows, K, w, finish);
  packed_product.template operator()<Whole<C> >(K);
#endif
}

template <class C, class CellT>
void input_product(const Share<C, CellT>& share, Block<C>& block) {
  const Layer<C>& layer = share.layer;
  const Weights<C>& w = share.dir.weights;
  forward_product(share, block.a, block.n, layer.I, w.w_ih, false, StoreInput<C, CellT>{block.out, w.bias, layer.H});
  block.n = 0;
}

// The order of arrivals and waits after a step, for a thread that holds shares [lo, hi).
template <class C>
void meet(const Layer<C>& layer, int64_t lo, int64_t hi, int64_t phase) {
  if (!layer.plan.waits()) return;
  const int64_t n = layer.plan.team_shares;
  for (int64_t share = lo; share < hi; ++share) layer.barriers[share / n].arrive(1);
  for (int64_t share = lo; share < hi; ++share) layer.barriers[share / n].wait(phase, n);
}
