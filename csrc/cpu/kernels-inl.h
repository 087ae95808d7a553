// One instruction set's table of kernels. Included once per instruction set inside FASTRNN_NS, after the other -inl
// files.

template <class C, class CellT>
int64_t forward_panels_size_cell(int64_t H, int64_t K) {
#ifdef FASTRNN_BF16
  return forward_panels<C, CellT>(H) * tiles_size(kForwardVecs<C, CellT>, K);
#else
  return forward_panels<C, CellT>(H) * kForwardVecs<C, CellT> * kLanes<C> * K;
#endif
}

template <class C, class CellT>
void pack_forward_cell(const C* w, int64_t row, int64_t column, int64_t H, int64_t K, C* to) {
#ifdef FASTRNN_BF16
  constexpr int64_t kVecs = kForwardVecs<C, CellT>, kStride = kVecs * kLanes<C>;
  const uint16_t* const weights = reinterpret_cast<const uint16_t*>(w);
  for (int64_t p = 0; p < forward_panels<C, CellT>(H); ++p) {
    for (int64_t k = 0; k < K; k += kTileFactors, to += kTilePairs * kStride) {
      for (int v = 0; v < kVecs; ++v) {
        const int64_t unit = (p * CellT::kUnitVecs + v % CellT::kUnitVecs) * kLanes<C>;
        pack_tile_rows(weights + (v / CellT::kUnitVecs * H + unit) * row + k, row, lanes_at<C>(unit, H), K - k,
                       to + v * kLanes<C>, kStride);
      }
    }
  }
#else
  if constexpr (kPlainForward<CellT>) return pack_plain(w, column, row, H, K, to);
  constexpr int64_t kStride = kForwardVecs<C, CellT> * kLanes<C>;
  for (int64_t p = 0; p < forward_panels<C, CellT>(H); ++p, to += kStride * K) {
    for (int v = 0; v < kForwardVecs<C, CellT>; ++v) {
      const int64_t unit = (p * CellT::kUnitVecs + v % CellT::kUnitVecs) * kLanes<C>;
      const C* first = w + (v / CellT::kUnitVecs * H + unit) * row;
      pack_vector(first, row, column, lanes_at<C>(unit, H), K, to + v * kLanes<C>, kStride);
    }
  }
#endif
}

// A new cell is one more line here.
#define FASTRNN_FOR_CELL(cell, call) \
  switch (cell) {                    \
    case Cell::kRnnTanh: {           \
      using CellT = Rnn<C, false>;   \
      return call;                   \
    }                                \
    case Cell::kRnnRelu: {           \
      using CellT = Rnn<C, true>;    \
      return call;                   \
    }                                \
    case Cell::kGru: {               \
      using CellT = Gru<C>;          \
      return call;                   \
    }                                \
    default: {                       \
      using CellT = Lstm<C>;         \
      return call;                   \
    }                                \
  }

template <class C>
int64_t forward_panels_size(Cell cell, int64_t H, int64_t K) {
  FASTRNN_FOR_CELL(cell, (forward_panels_size_cell<C, CellT>(H, K)))
}
template <class C>
void pack_forward(Cell cell, const C* w, int64_t row, int64_t column, int64_t H, int64_t K, C* to) {
  FASTRNN_FOR_CELL(cell, (pack_forward_cell<C, CellT>(w, row, column, H, K, to)))
}
template <class C>
void forward(const Layer<C>& layer, int64_t lo, int64_t hi) {
  FASTRNN_FOR_CELL(layer.cell, (forward_cell<C, CellT>(layer, lo, hi)))
}
template <class C>
void gather(const Layer<C>& layer, int64_t lo, int64_t hi) {
  FASTRNN_FOR_CELL(layer.cell, (gather_cell<C, CellT>(layer, lo, hi)))
}
template <class C>
void backward(const Layer<C>& layer, int64_t lo, int64_t hi) {
  FASTRNN_FOR_CELL(layer.cell, (backward_cell<C, CellT>(layer, lo, hi)))
}
template <class C>
void input_gradient(const Layer<C>& layer, int direction, int64_t part, int64_t lo, int64_t hi) {
  FASTRNN_FOR_CELL(layer.cell, (input_gradient_cell<C, CellT>(layer, direction, part, lo, hi)))
}

#ifdef FASTRNN_BF16
constexpr bool kBf16 = true;
#else
constexpr bool kBf16 = false;
constexpr int64_t (*tile_rows_size)(int64_t, int64_t) = nullptr;
#endif

constexpr Kernels<float> kernels_f32 = {
    kLanes<float>,
    kBf16,
    tile_rows_size,
    forward_panels_size<float>,
    plain_panels_size<float>,
    pack_forward<float>,
    pack_plain<float>,
    load_bf16,
    store_bf16,
    load_f16,
    store_f16,
    forward<float>,
    gather<float>,
    backward<float>,
    input_gradient<float>,
    factors_size<float>,
    sum_panels<float>,
    sum_memory<float>,
    pack_factors<float>,
    add_sums<float>,
    sum_columns<float>,
};
#ifndef FASTRNN_BF16
constexpr Kernels<double> kernels_f64 = {
    kLanes<double>,
    false,
    nullptr,
    forward_panels_size<double>,
    plain_panels_size<double>,
    pack_forward<double>,
    pack_plain<double>,
    nullptr,
    nullptr,
    nullptr,
    nullptr,
    forward<double>,
    gather<double>,
    backward<double>,
    input_gradient<double>,
    factors_size<double>,
    sum_panels<double>,
    sum_memory<double>,
    pack_factors<double>,
    add_sums<double>,
    sum_columns<double>,
};
#endif
