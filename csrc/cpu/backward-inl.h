// The backward pass of a layer, a chunk of steps at a time, last chunk first: gather what the chunk's products need
// into compact buffers (and, on the lean tape, recompute the gates), walk the steps backwards leaving every step's gate
// gradients, then the input's gradient. The weights' gradients are products of the compact buffers: sums-inl.h.
// Included once per instruction set inside FASTRNN_NS.

// The number in the compact buffers of rank 0 at time t.
template <class C, class CellT>
int64_t compact_at(const Share<C, CellT>& share, int64_t t) {
  const Sequences& seq = share.layer.seq;
  return seq.compact[t] - seq.compact[share.dir.reverse ? seq.T - share.layer.s1 : share.layer.s0];
}

// Lean tape: h W_hh' on top of what the input product left.
template <class C, class CellT>
struct StoreRecurrent {
  C* const* pre;
  const C* bias;
  int64_t H;
  FASTRNN_INLINE void prefetch(int64_t row, int64_t panel) const {
    for_each_vector<C, CellT, true>(panel, H, [&](int, int, int64_t column, int) { fetch(pre[row] + column); });
  }
  FASTRNN_INLINE void operator()(const Vec<C>* sum, int64_t row, int64_t panel) const {
    for_each_vector<C, CellT, true>(panel, H, [&](int gate, int v, int64_t column, int lanes) {
      store(pre[row] + column, with_input<C, CellT>(sum[v], pre[row], bias, gate, column, lanes), lanes);
    });
  }
};

template <class C, class CellT>
struct BackwardShare : Share<C, CellT> {
  using Base = Share<C, CellT>;
  using Base::dir;
  using Base::layer;

  BackwardShare(const Layer<C>& l, int64_t index, int64_t turn) : Base(l, index, turn, true) {}

  int64_t compact(int64_t t) const { return compact_at(*this, t); }

  // The state h before and the input, for every row alive at the step.
  void gather(int64_t s) const {
    const int64_t t = this->time(s), H = layer.H, I = layer.I;
    for (int64_t rank = 0; rank < layer.seq.alive[t]; ++rank) {
      const int64_t b = this->row(rank), at = compact(t) + rank;
      C* h = dir.h_prev + at * H;
      if (this->cut(t, rank)) {
        copy(layer.zeros, h, H);
      } else if (this->begins(t, rank)) {
        copy(this->initial(dir.h0, b), h, H);
      } else {
        fetch(layer.y.at(this->before(t), b) + this->d * H * layer.y.item, h, H);
      }
      if (dir.x_chunk != nullptr) fetch(layer.x.at(t, b), dir.x_chunk + at * I, I);
    }
  }

  void fetch(const char* from, C* to, int64_t n) const {
    if (layer.load != nullptr) {
      layer.load(from, to, n);
    } else {
      copy(reinterpret_cast<const C*>(from), to, n);
    }
  }

  const C* c_at(int64_t t, int64_t rank) const {
    if (layer.lean) return dir.chunk_cells + (compact(t) + rank) * layer.H;
    return this->cells_at(t, this->row(rank));
  }

  const C* c_before(int64_t s, int64_t t, int64_t rank) const {
    const int64_t b = this->row(rank);
    if (this->cut(t, rank)) return layer.zeros;
    if (this->begins(t, rank)) return this->initial(dir.c0, b);
    if (layer.lean && s == layer.s0) return this->border(s, b);
    return c_at(this->before(t), rank);
  }

  const C* gates_at(int64_t t, int64_t rank) const {
    const int64_t at = layer.lean ? compact(t) + rank : layer.seq.first[t] + this->row(rank);
    return (layer.lean ? dir.gates : dir.tape) + at * CellT::kWidth * layer.H;
  }

  // Lean tape: the chunk's gates and cell states again, by the same sums in the same order as forward.
  void recompute() const {
    const int64_t H = layer.H, width = CellT::kWidth * H;
    Block<C> block;
    const C* h_prev[kBlockRows];
    int64_t n = 0;
    for (int64_t s = layer.s0; s < layer.s1; ++s) {
      const int64_t t = this->time(s), end = this->ranks(t);
      for (int64_t rank = this->rank0; rank < end; ++rank) {
        const int64_t at = compact(t) + rank;
        block.a[n] = dir.x_chunk != nullptr ? dir.x_chunk + at * layer.I
                                            : reinterpret_cast<const C*>(layer.x.at(t, this->row(rank)));
        block.out[n] = dir.gates + at * width;
        h_prev[n] = dir.h_prev + at * H;
        if (++n == kBlockRows) recompute_block(block, h_prev, n);
      }
    }
    if (n > 0) recompute_block(block, h_prev, n);
    for (int64_t s = layer.s0; s < layer.s1; ++s) {
      const int64_t t = this->time(s), end = this->ranks(t);
      for (int64_t rank = this->rank0; rank < end; ++rank) activate(s, t, rank);
    }
  }

  void recompute_block(Block<C>& block, const C* const* h_prev, int64_t& n) const {
    const Weights<C>& w = dir.weights;
    block.n = n;
    input_product(*this, block);
    forward_product(*this, h_prev, n, layer.H, w.w_hh, false, StoreRecurrent<C, CellT>{block.out, w.bias, layer.H});
    n = 0;
  }

  void activate(int64_t s, int64_t t, int64_t rank) const {
    const int64_t H = layer.H, at = compact(t) + rank;
    C* pre = dir.gates + at * CellT::kWidth * H;
    const C* c_prev = CellT::kHasC ? c_before(s, t, rank) : nullptr;
    for (int64_t unit = this->unit0; unit < this->unit1; unit += kLanes<C>) {
      const int lanes = lanes_at<C>(unit, H);
      Vec<C> gates[CellT::kGates];
      const Columns columns = columns_of(unit, H, CellT::kWidth);
      for (int g = 0; g < CellT::kGates; ++g) {
        gates[g] = load(pre + columns.at + CellT::pre_column(g) * columns.apart, lanes);
      }
      CellT::step(gates, Unit<C>{pre + columns.at, nullptr, CellT::kHasC ? c_prev + unit : nullptr, nullptr,
                                 CellT::kHasC ? dir.chunk_cells + at * H + unit : nullptr, columns.apart, lanes, true});
    }
  }

  // The gate gradients of one step from the gradients of the state after it, and what flows past the product.
  void gates(int64_t s) const {
    const int64_t t = this->time(s), end = this->ranks(t), H = layer.H;
    const int64_t unit0 = this->unit0, units = this->unit1 - unit0;
    C* const dy_converted = reinterpret_cast<C*>(this->scratch + layer.seq.B * 2 * sizeof(C*));
    C* const h_converted = dy_converted + H;
    for (int64_t rank = this->rank0; rank < end; ++rank) {
      const int64_t b = this->row(rank), at = compact(t) + rank;
      const bool ends = this->ends(t, rank);
      const C* dy = nullptr;
      if (layer.dy) {
        const char* from = layer.dy.at(t, b) + this->d * H * layer.dy.item;
        dy = reinterpret_cast<const C*>(from);
        if (layer.load != nullptr) {
          layer.load(from + unit0 * layer.dy.item, dy_converted + unit0, units);
          dy = dy_converted;
        }
      }
      const C* dcells = layer.dcells ? layer.dcells.at(t, b) + this->d * H : nullptr;
      const C* h = nullptr;
      if constexpr (CellT::kGates == 1) {
        const char* from = layer.y.at(t, b) + this->d * H * layer.y.item;
        h = reinterpret_cast<const C*>(from);
        if (layer.load != nullptr) {
          layer.load(from + unit0 * layer.y.item, h_converted + unit0, units);
          h = h_converted;
        }
      }
      const C* gates = CellT::kGates == 1 ? nullptr : gates_at(t, rank);
      const C* c = CellT::kHasC ? c_at(t, rank) : nullptr;
      const C* c_prev = CellT::kHasC ? c_before(s, t, rank) : nullptr;
      C* const dh_row = dir.dh + b * H;
      C* const dc_row = CellT::kHasC ? dir.dc + b * H : nullptr;
      for (int64_t unit = unit0; unit < this->unit1; unit += kLanes<C>) {
        const int lanes = lanes_at<C>(unit, H);
        Vec<C> dh = load(dh_row + unit, lanes), dc{};
        if (dy != nullptr) dh = dh + load(dy + unit, lanes);
        if (ends && dir.dh_n != nullptr) dh = dh + load(dir.dh_n + b * H + unit, lanes);
        if constexpr (CellT::kHasC) {
          dc = load(dc_row + unit, lanes);
          if (dcells != nullptr) dc = dc + load(dcells + unit, lanes);
          if (ends && dir.dc_n != nullptr) dc = dc + load(dir.dc_n + b * H + unit, lanes);
        }
        UnitGradient<C> u{};
        u.dgates = dir.dgates + at * CellT::kWidth * H + unit;
        u.h_prev = dir.h_prev + at * H + unit;
        u.H = H;
        u.lanes = lanes;
        if constexpr (CellT::kGates == 1) {
          u.h = h + unit;
        } else {
          const Columns columns = columns_of(unit, H, CellT::kWidth);
          u.gates = gates + columns.at;
          u.apart = columns.apart;
        }
        if constexpr (CellT::kHasC) {
          u.c = c + unit;
          u.c_prev = c_prev + unit;
        }
        CellT::backward(u, dh, dc);
        store(dh_row + unit, dh, lanes);
        if constexpr (CellT::kHasC) store(dc_row + unit, dc, lanes);
      }
    }
  }

  // dh of the step before: dG W_hh on top of what flows past the product; nothing where the state was cut.
  void previous(int64_t s) const {
    const int64_t t = this->time(s), end = this->ranks(t), H = layer.H;
    const C** dgates = reinterpret_cast<const C**>(this->scratch);
    C** dh = reinterpret_cast<C**>(this->scratch + layer.seq.B * sizeof(C*));
    int64_t n = 0;
    for (int64_t rank = this->rank0; rank < end; ++rank) {
      const int64_t row = this->row(rank) * H;
      if (this->cut(t, rank)) {
        copy(layer.zeros, dir.dh + row + this->unit0, this->unit1 - this->unit0);
        if constexpr (CellT::kHasC) copy(layer.zeros, dir.dc + row + this->unit0, this->unit1 - this->unit0);
        continue;
      }
      dgates[n] = dir.dgates + (compact(t) + rank) * CellT::kWidth * H;
      dh[n++] = dir.dh + row;
    }
    const Runs runs = CellT::kGates == 3 ? Runs{2 * H, 3 * H, H} : Runs{CellT::kGates * H};
    plain_product(dgates, n, runs, dir.weights.w_hh_t, this->plain0, this->plain1, s & 1, this->tiles,
                  StoreAt<C>{dh, H, true});
  }
};

template <class C, class CellT>
void gather_cell(const Layer<C>& layer, int64_t lo, int64_t hi) {
  const int64_t steps = layer.s1 - layer.s0;
  for (int64_t item = lo; item < hi; ++item) {
    const int64_t d = item / steps, share = layer.plan.teams == 2 ? d * layer.plan.team_shares : 0;
    BackwardShare<C, CellT>(layer, share, d).gather(layer.s0 + item % steps);
  }
}

template <class C, class CellT>
void backward_cell(const Layer<C>& layer, int64_t lo, int64_t hi) {
  const int64_t steps = layer.s1 - layer.s0;
  for (int64_t turn = 0; turn < layer.directions / layer.plan.teams; ++turn) {
    if constexpr (CellT::kGates > 1) {
      for (int64_t index = lo; layer.lean && index < hi; ++index)
        BackwardShare<C, CellT>(layer, index, turn).recompute();
    }
    for (int64_t s = layer.s1 - 1; s >= layer.s0; --s) {
      for (int64_t index = lo; index < hi; ++index) BackwardShare<C, CellT>(layer, index, turn).gates(s);
      meet(layer, lo, hi, turn * steps + layer.s1 - s);
      for (int64_t index = lo; index < hi; ++index) BackwardShare<C, CellT>(layer, index, turn).previous(s);
    }
  }
}

template <class C, class CellT>
void input_gradient_cell(const Layer<C>& layer, int direction, int64_t part, int64_t lo, int64_t hi) {
  const BackwardShare<C, CellT> share(layer, layer.plan.teams == 2 ? direction * layer.plan.team_shares : 0, direction);
  const Direction<C>& dir = share.dir;
  char* const tiles = layer.tiles + part * layer.tiles_size;
  const int64_t width = CellT::kWidth * layer.H, first = share.time(dir.reverse ? layer.s1 - 1 : layer.s0);
  Block<C> block;
  int64_t t = first;
  for (int64_t at = lo; at < hi; ++at) {
    while (at >= share.compact(t) + layer.seq.alive[t]) ++t;
    block.a[block.n] = dir.dgates + at * width;
    block.out[block.n] = layer.dx.at(t, share.row(at - share.compact(t)));
    if (++block.n < kBlockRows && at + 1 < hi) continue;
    plain_product(block.a, block.n, Runs{CellT::kGates * layer.H}, dir.weights.w_ih_t, 0, plain_panels<C>(layer.I),
                  false, tiles, StoreAt<C>{block.out, layer.I, layer.directions == 2});
    block.n = 0;
  }
}
