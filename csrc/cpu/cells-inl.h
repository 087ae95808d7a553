// The gate mathematics of every cell, forward and backward, on one vector of units. Included once per instruction set
// inside FASTRNN_NS.
//
// A cell has kGates gates; a panel of its forward weights holds kUnitVecs vectors of units times kGates, accumulator
// v = gate * kUnitVecs + unit vector. A row's pre-activations (and the tape) are kWidth columns (rnn.h: columns_of):
//   lstm  i f g o            torch.nn.LSTMCell
//   gru   r z n hn           torch.nn.GRUCell; hn = W_hn h + b_hn, n the part from x until the gate is known
//   rnn   a                  torch.nn.RNNCell
// pre_column(g) is the column that gate g's recurrent sum is added to (of the row, or of the bias where from_bias).

// One row at one vector of units. Pointers are at the unit.
template <class C>
struct Unit {
  C* pre;           // pre-activations from x; the activated gates go there when `keep`
  const C* h_prev;  // state before the step
  const C* c_prev;
  C* h;  // state after the step; h may be null
  C* c;
  int64_t apart;  // of the columns of pre
  int lanes;
  bool keep;
};

// The same on the way back. dh, dc: gradient of the state after the step in, of the state before it out (dh without the
// part through the recurrent product).
template <class C>
struct UnitGradient {
  const C* gates;
  const C* h_prev;
  const C* h;
  const C* c_prev;
  const C* c;
  C* dgates;  // columns lie H apart, as the products for the weights want them
  int64_t apart, H;
  int lanes;
};

template <class C>
struct Lstm {
  static constexpr int kGates = 4, kUnitVecs = 1, kWidth = 4;
  static constexpr bool kHasC = true;
  static constexpr int pre_column(int gate) { return gate; }
  static constexpr bool from_bias(int) { return false; }

  static FASTRNN_INLINE void step(const Vec<C>* a, const Unit<C>& u) {
    const Vec<C> i = sigmoid<C>(a[0]), f = sigmoid<C>(a[1]), g = tanh<C>(a[2]), o = sigmoid<C>(a[3]);
    const Vec<C> c = fma(f, load(u.c_prev, u.lanes), i * g);
    store(u.c, c, u.lanes);
    if (u.h != nullptr) store(u.h, o * tanh<C>(c), u.lanes);
    if (!u.keep) return;
    store(u.pre, i, u.lanes);
    store(u.pre + u.apart, f, u.lanes);
    store(u.pre + 2 * u.apart, g, u.lanes);
    store(u.pre + 3 * u.apart, o, u.lanes);
  }

  static FASTRNN_INLINE void backward(const UnitGradient<C>& u, Vec<C>& dh, Vec<C>& dc) {
    const Vec<C> i = load(u.gates, u.lanes), f = load(u.gates + u.apart, u.lanes);
    const Vec<C> g = load(u.gates + 2 * u.apart, u.lanes), o = load(u.gates + 3 * u.apart, u.lanes);
    const Vec<C> tanh_c = tanh<C>(load(u.c, u.lanes));
    dc = dc + dh * o * (C(1) - tanh_c * tanh_c);
    store(u.dgates, dc * g * i * (C(1) - i), u.lanes);
    store(u.dgates + u.H, dc * load(u.c_prev, u.lanes) * f * (C(1) - f), u.lanes);
    store(u.dgates + 2 * u.H, dc * i * (C(1) - g * g), u.lanes);
    store(u.dgates + 3 * u.H, dh * tanh_c * o * (C(1) - o), u.lanes);
    dc = dc * f;
    dh = Vec<C>{};
  }
};

template <class C>
struct Gru {
  static constexpr int kGates = 3, kUnitVecs = 1, kWidth = 4;
  static constexpr bool kHasC = false;
  static constexpr int pre_column(int gate) { return gate == 2 ? 3 : gate; }
  static constexpr bool from_bias(int gate) { return gate == 2; }

  static FASTRNN_INLINE void step(const Vec<C>* a, const Unit<C>& u) {
    const Vec<C> r = sigmoid<C>(a[0]), z = sigmoid<C>(a[1]);
    const Vec<C> n = tanh<C>(fma(r, a[2], load(u.pre + 2 * u.apart, u.lanes)));
    if (u.h != nullptr) store(u.h, fma(z, load(u.h_prev, u.lanes) - n, n), u.lanes);
    if (!u.keep) return;
    store(u.pre, r, u.lanes);
    store(u.pre + u.apart, z, u.lanes);
    store(u.pre + 2 * u.apart, n, u.lanes);
    store(u.pre + 3 * u.apart, a[2], u.lanes);
  }

  static FASTRNN_INLINE void backward(const UnitGradient<C>& u, Vec<C>& dh, Vec<C>&) {
    const Vec<C> r = load(u.gates, u.lanes), z = load(u.gates + u.apart, u.lanes);
    const Vec<C> n = load(u.gates + 2 * u.apart, u.lanes), hn = load(u.gates + 3 * u.apart, u.lanes);
    const Vec<C> dn = dh * (C(1) - z) * (C(1) - n * n);
    store(u.dgates, dn * hn * r * (C(1) - r), u.lanes);
    store(u.dgates + u.H, dh * (load(u.h_prev, u.lanes) - n) * z * (C(1) - z), u.lanes);
    store(u.dgates + 2 * u.H, dn, u.lanes);
    store(u.dgates + 3 * u.H, dn * r, u.lanes);
    dh = dh * z;
  }
};

template <class C, bool kRelu>
struct Rnn {
  static constexpr int kGates = 1, kUnitVecs = 4, kWidth = 1;
  static constexpr bool kHasC = false;
  static constexpr int pre_column(int) { return 0; }
  static constexpr bool from_bias(int) { return false; }

  static FASTRNN_INLINE void step(const Vec<C>* a, const Unit<C>& u) {
    if constexpr (kRelu) {
      store(u.h, a[0] < C(0) ? Vec<C>{} : a[0], u.lanes);  // NaN passes, as in torch.relu
    } else {
      store(u.h, tanh<C>(a[0]), u.lanes);
    }
  }

  static FASTRNN_INLINE void backward(const UnitGradient<C>& u, Vec<C>& dh, Vec<C>&) {
    const Vec<C> h = load(u.h, u.lanes);
    if constexpr (kRelu) {
      store(u.dgates, h <= C(0) ? Vec<C>{} : dh, u.lanes);
    } else {
      store(u.dgates, dh * (C(1) - h * h), u.lanes);
    }
    dh = Vec<C>{};
  }
};
