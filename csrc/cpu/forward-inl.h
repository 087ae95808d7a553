// The forward pass of a layer: for a chunk of steps the input product into the pre-activations, then step by step the
// recurrent product with the gates on its accumulators. A share does this alone for its rows; shares of units meet at a
// barrier after every step, because the next one needs all of h. Included once per instruction set inside FASTRNN_NS.

template <class C>
struct StepRow {
  const C *h_prev, *c_prev;
  C *pre, *h, *c;
};

template <class C, class CellT>
struct FinishStep {
  const StepRow<C>* rows;
  const C* bias;
  int64_t H;
  bool keep;
  FASTRNN_INLINE void prefetch(int64_t row, int64_t panel) const {
    const StepRow<C>& at = rows[row];
    for_each_vector<C, CellT, true>(panel, H, [&](int, int, int64_t column, int) { fetch(at.pre + column); });
    const int64_t unit = panel * CellT::kUnitVecs * kLanes<C>;
    if constexpr (CellT::kHasC) fetch(at.c_prev + unit);
    fetch(at.h + unit);
  }
  FASTRNN_INLINE void operator()(const Vec<C>* sum, int64_t row, int64_t panel) const {
    const StepRow<C>& at = rows[row];
    for (int u = 0; u < CellT::kUnitVecs; ++u) {
      const int64_t unit = (panel * CellT::kUnitVecs + u) * kLanes<C>;
      const int lanes = lanes_at<C>(unit, H);
      if (lanes == 0) break;
      const Columns columns = columns_of(unit, H, CellT::kWidth);
      Vec<C> gates[CellT::kGates];
      for (int g = 0; g < CellT::kGates; ++g) {
        const int64_t column = columns.at + CellT::pre_column(g) * columns.apart;
        gates[g] = with_input<C, CellT>(sum[g * CellT::kUnitVecs + u], at.pre, bias, g, column, lanes);
      }
      CellT::step(gates, Unit<C>{at.pre + columns.at, at.h_prev + unit, CellT::kHasC ? at.c_prev + unit : nullptr,
                                 at.h + unit, CellT::kHasC ? at.c + unit : nullptr, columns.apart, lanes, keep});
    }
  }
};

template <class C, class CellT>
struct ForwardShare : Share<C, CellT> {
  using Base = Share<C, CellT>;
  using Base::dir;
  using Base::layer;

  ForwardShare(const Layer<C>& l, int64_t index, int64_t turn) : Base(l, index, turn, false) {}

  C* pre_at(int64_t s, int64_t t, int64_t rank) const {
    if (dir.tape != nullptr) return dir.tape + (layer.seq.first[t] + this->row(rank)) * CellT::kWidth * layer.H;
    return dir.pre + (s % layer.plan.forward_steps * layer.seq.B + rank) * CellT::kWidth * layer.H;
  }

  void chunk(int64_t s0, int64_t s1) const {
    C* converted = reinterpret_cast<C*>(this->scratch + layer.seq.B * sizeof(StepRow<C>) + layer.seq.B * sizeof(C*));
    Block<C> block;
    for (int64_t s = s0; s < s1; ++s) {
      const int64_t t = this->time(s), end = this->ranks(t);
      for (int64_t rank = this->rank0; rank < end; ++rank) {
        const char* x = layer.x.at(t, this->row(rank));
        if (layer.load != nullptr) {
          layer.load(x, converted + block.n * layer.I, layer.I);
          block.a[block.n] = converted + block.n * layer.I;
        } else {
          block.a[block.n] = reinterpret_cast<const C*>(x);
        }
        block.out[block.n] = pre_at(s, t, rank);
        if (++block.n == kBlockRows) input_product(*this, block);
      }
    }
    if (block.n > 0) input_product(*this, block);
  }

  C* state_row(int64_t s, int64_t b) const { return dir.h_state + ((s & 1) * layer.seq.B + b) * layer.H; }
  C* y_row(int64_t t, int64_t b) const { return reinterpret_cast<C*>(layer.y.at(t, b)) + this->d * layer.H; }

  // Where the states of a row lie around the step s at time t.
  StepRow<C> step_row(int64_t s, int64_t t, int64_t rank) const {
    const int64_t b = this->row(rank);
    const bool begins = this->begins(t, rank), own_state = layer.store != nullptr;
    StepRow<C> at{};
    at.pre = pre_at(s, t, rank);
    at.h = own_state ? state_row(s, b) : y_row(t, b);
    if (begins) {
      at.h_prev = this->initial(dir.h0, b);
    } else {
      at.h_prev = own_state ? state_row(s - 1, b) : y_row(this->before(t), b);
    }
    if constexpr (CellT::kHasC) {
      const bool all = static_cast<bool>(layer.cells);
      at.c = all ? this->cells_at(t, b) : dir.c_state + b * layer.H;
      if (begins) {
        at.c_prev = this->initial(dir.c0, b);
      } else {
        at.c_prev = all ? this->cells_at(this->before(t), b) : at.c;
        if (dir.borders != nullptr && s % kLeanChunk == 0) {
          C* border = dir.borders + (s / kLeanChunk * layer.seq.B + b) * layer.H;
          copy(at.c_prev + this->unit0, border + this->unit0, this->unit1 - this->unit0);
        }
      }
    }
    if (this->cut(t, rank)) at.h_prev = at.c_prev = layer.zeros;
    return at;
  }

  void step(int64_t s) const {
    const int64_t t = this->time(s), first = this->rank0, n = this->ranks(t) - first, H = layer.H;
    if (n <= 0) return;
    StepRow<C>* rows = reinterpret_cast<StepRow<C>*>(this->scratch);
    const C** h_prev = reinterpret_cast<const C**>(this->scratch + layer.seq.B * sizeof(StepRow<C>));
    for (int64_t i = 0; i < n; ++i) {
      rows[i] = step_row(s, t, first + i);
      h_prev[i] = rows[i].h_prev;
    }
    forward_product(*this, h_prev, n, H, dir.weights.w_hh, s & 1,
                    FinishStep<C, CellT>{rows, dir.weights.bias, H, dir.tape != nullptr});
    const int64_t unit0 = this->unit0, units = this->unit1 - unit0;
    for (int64_t i = 0; i < n; ++i) {
      const int64_t b = this->row(first + i);
      if (layer.store != nullptr) {
        layer.store(rows[i].h + unit0, layer.y.at(t, b) + (this->d * H + unit0) * layer.y.item, units);
      }
      if (this->ends(t, first + i)) {
        copy(rows[i].h + unit0, dir.h_n + b * H + unit0, units);
        if constexpr (CellT::kHasC) copy(rows[i].c + unit0, dir.c_n + b * H + unit0, units);
      }
    }
  }
};

template <class C, class CellT>
void forward_cell(const Layer<C>& layer, int64_t lo, int64_t hi) {
  const int64_t T = layer.seq.T, chunk = layer.plan.forward_steps;
  for (int64_t turn = 0; turn < layer.directions / layer.plan.teams; ++turn) {
    for (int64_t s = 0; s < T; ++s) {
      for (int64_t index = lo; index < hi; ++index) {
        const ForwardShare<C, CellT> share(layer, index, turn);
        if (s % chunk == 0) share.chunk(s, s + chunk < T ? s + chunk : T);
        share.step(s);
      }
      meet(layer, lo, hi, turn * T + s + 1);
    }
  }
}
