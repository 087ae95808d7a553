// The CPU engine, without torch: what a layer's passes are given, and the table of kernels of one instruction set.
//
// Words and shapes are those of fastrnn/_ops.py: T steps, B rows (sequences), I inputs, H hidden units, G gates, D
// directions. All arithmetic is in the compute type C (float or double). 16-bit tensors are storage: their rows pass
// through `load` and `store`, which are null where storage and compute type are the same.
//
// A pass is cut into shares that threads run (plan.h). A direction's steps are numbered in processing order, s = 0 …
// T-1; t is the position in time, s or T-1-s. Rows are visited by rank: rank 0 is the longest, order[rank] is the row.
#pragma once

#include <cstdint>

#include "cpu/plan.h"

namespace fastrnn::cpu {

constexpr int64_t kLeanChunk = 64;  // fastrnn/_ops.py: LEAN_CHUNK

// A row of pre-activations, and of the full tape, holds `width` values a unit: of kUnitBlock units all of the first,
// then all of the second, …, then the next units. So what one panel of weights yields lies together, whatever H is;
// columns that lay H apart would, for H = 512 and the like, all fall into the same few sets of the cache.
constexpr int64_t kUnitBlock = 16;

struct Sizes {
  int64_t T, B, I, H;
};

struct Columns {
  int64_t at, apart;  // a unit's values are at `at`, `at + apart`, …
};

constexpr Columns columns_of(int64_t unit, int64_t H, int64_t width) {
  const int64_t block = unit / kUnitBlock * kUnitBlock, n = H - block < kUnitBlock ? H - block : kUnitBlock;
  return {block * width + unit - block, n};
}

enum class Cell { kRnnTanh, kRnnRelu, kLstm, kGru };

// Rows of features addressed by (time, row): a strided (T, B, n) tensor, or packed rows (N, n) with `first`.
template <class P>
struct Rows {
  P* data = nullptr;
  int64_t step = 0, row = 0;       // strides in elements; the features of a row are contiguous
  const int64_t* first = nullptr;  // packed: (T), number of the first row of a step
  int64_t item = 1;                // bytes an element where P is void's stand-in, char
  P* at(int64_t t, int64_t b) const { return data + ((first ? first[t] * row : t * step) + b * row) * item; }
  explicit operator bool() const { return data != nullptr; }
};

// The shape of a batch of sequences.
struct Sequences {
  int64_t T = 0, B = 0;
  const int64_t* alive = nullptr;      // (T): ranks below alive[t] are alive at t; never rises
  const int64_t* order = nullptr;      // (B): the row at a rank
  const int64_t* first = nullptr;      // (T): number of step t's first row in contiguous and packed tensors
  const int64_t* compact = nullptr;    // (T + 1): rows alive before step t, all steps counted
  const int64_t* row_start = nullptr;  // (shares a team + 1): first rank of a share when rows are split
  const bool* reset = nullptr;
  int64_t reset_step = 0, reset_row = 0;

  bool resets(int64_t t, int64_t b) const { return reset != nullptr && reset[t * reset_step + b * reset_row]; }
};

// Weights of one direction as panels: [panel][k][vector][lane], zero beyond the last unit (product-inl.h); the forward
// ones as they came where Layer::packed is false.
template <class C>
struct Weights {
  const C *w_ih = nullptr, *w_hh = nullptr;      // forward: x W_ih', h W_hh', columns by units x gates
  const C *w_ih_t = nullptr, *w_hh_t = nullptr;  // backward: dG W_ih, dG W_hh
  const C* bias = nullptr;                       // (width * H): what the products are added to, in columns_of
};

template <class C>
struct Direction {
  Weights<C> weights;
  bool reverse = false;
  const C *h0 = nullptr, *c0 = nullptr;  // (B, H) or null: zeros
  // Forward.
  C *h_n = nullptr, *c_n = nullptr;  // (B, H)
  C* tape = nullptr;                 // full: (N, width * H), gates of every step; else null
  C* borders = nullptr;              // lean: (chunks, B, H), cell state before every kLeanChunk steps; else null
  C* pre = nullptr;                  // without a tape: (chunk steps * B, width * H), workspace
  C *h_state = nullptr, *c_state = nullptr;  // workspace (2, B, H) where y's storage is not C; (B, H) without cells
  // Backward; the compact buffers hold the rows alive in the chunk, by time and rank.
  const C *dh_n = nullptr, *dc_n = nullptr;  // (B, H) or null
  C *dh = nullptr, *dc = nullptr;  // (B, H): gradient arriving from the step processed before; in the end dh0, dc0
  C* gates = nullptr;              // lean: compact (rows, width * H), recomputed
  C* chunk_cells = nullptr;        // lean: compact (rows, H), recomputed
  C* h_prev = nullptr;             // compact (rows, H)
  C* x_chunk = nullptr;            // compact (rows, I), or null: x is used where it lies
  C* dgates = nullptr;             // compact (rows, width * H)
};

// One layer's pass.
template <class C>
struct Layer {
  Cell cell = Cell::kLstm;
  int64_t I = 0, H = 0;
  int directions = 1;
  Sequences seq;
  Plan plan;
  bool packed = true;  // forward weights: panels, or else the rows of w_ih and w_hh as torch has them, contiguous
  bool half_weights = false;  // they are bfloat16 where C is float: panels of pairs, [panel][k / 2][vector][lane]
  void (*load)(const void* from, C* to, int64_t n) = nullptr;
  void (*store)(const C* from, void* to, int64_t n) = nullptr;
  Rows<const char> x;  // storage
  Rows<char> y;        // storage, D * H features
  Rows<C> cells;       // D * H features, or null
  Rows<const char> dy;
  Rows<const C> dcells;
  Rows<C> dx;                // compute type; the second direction adds to the first's
  const C* zeros = nullptr;  // (max(I, H)) zeros
  char* scratch = nullptr;   // (shares, plan.scratch) workspace
  char* tiles = nullptr;     // (shares, tiles_size) workspace: a product's rows in bfloat16, where it is of that
  int64_t tiles_size = 0;
  Direction<C> dir[2];
  Barrier* barriers = nullptr;  // one a team
  int64_t s0 = 0, s1 = 0;       // the chunk of processing steps; forward: all
  bool lean = false;            // backward: recompute the gates

  // The part that shares [lo, hi) have of the work on the chunk.
  double work(int64_t lo, int64_t hi) const {
    const int64_t n = plan.team_shares;
    if (plan.by_units) return static_cast<double>(hi - lo) / plan.shares();
    int64_t mine = 0, all = 0;  // rows of steps
    for (int64_t d = 0; d < directions; ++d) {
      for (int64_t s = s0; s < s1; ++s) {
        const int64_t alive = seq.alive[d == 1 ? seq.T - 1 - s : s];
        all += alive;
        for (int64_t share = lo; share < hi; ++share) {
          if (plan.teams == 2 && share / n != d) continue;
          const int64_t first = seq.row_start[share % n], end = seq.row_start[share % n + 1];
          if (alive > first) mine += (alive < end ? alive : end) - first;
        }
      }
    }
    return all > 0 ? static_cast<double>(mine) / static_cast<double>(all) : 0;
  }
};

constexpr int64_t kSumRows = 512;  // of a sum in C

// Sums over at most kSumRows compact rows of a direction: what its weights' gradients are made of.
template <class C>
struct Sums {
  const C *dgates, *x, *h_prev;  // (n, width), (n, I), (n, H)
  int64_t n, width, I, H;
  C* factors;  // workspace: x and h_prev as panels
  bool add;    // to what the gradients hold
};

template <class C>
struct Kernels {
  int lanes = 0;      // units a vector
  bool bf16 = false;  // weights come as bfloat16 in rows without gaps, and products are of bfloat16
  int64_t (*tile_rows_size)(int64_t n, int64_t K);  // bytes that n rows of K elements take in it; null without bf16
  // Elements of a packed weight: forward columns (units x gates), and backward columns (n plain columns).
  int64_t (*forward_panels_size)(Cell, int64_t H, int64_t K);
  int64_t (*plain_panels_size)(int64_t n, int64_t K);
  // Pack w (element strides row, column).
  void (*pack_forward)(Cell, const C* w, int64_t row, int64_t column, int64_t H, int64_t K, C* to);
  void (*pack_plain)(const C* w, int64_t row, int64_t column, int64_t n, int64_t K, C* to);
  // Storage of 16 bits, for C = float; null for double.
  void (*load_bf16)(const void* from, C* to, int64_t n);
  void (*store_bf16)(const C* from, void* to, int64_t n);
  void (*load_f16)(const void* from, C* to, int64_t n);
  void (*store_f16)(const C* from, void* to, int64_t n);
  // Forward: shares [lo, hi).
  void (*forward)(const Layer<C>&, int64_t lo, int64_t hi);
  // Backward, a chunk: gather the compact buffers of steps (direction by direction) [lo, hi); then shares [lo, hi) of
  // the recurrence; then a direction's dx for compact rows [lo, hi), in the memory of share `part`.
  void (*gather)(const Layer<C>&, int64_t lo, int64_t hi);
  void (*backward)(const Layer<C>&, int64_t lo, int64_t hi);
  void (*input_gradient)(const Layer<C>&, int direction, int64_t part, int64_t lo, int64_t hi);
  // Then a direction's weights, kSumRows compact rows at a time: pack panels [p0, p1) of the sum_panels(I + H) that x
  // and h_prev make; and the sums of columns [c0, c1) of dgates times x and times h_prev, to the rows of gradients from
  // ih and hh on (null: not wanted), in sum_memory(n) bytes of the caller's own.
  int64_t (*factors_size)(int64_t columns, int64_t n);  // elements of all panels
  int64_t (*sum_panels)(int64_t columns);
  int64_t (*sum_memory)(int64_t n);
  void (*pack_factors)(const Sums<C>&, int64_t p0, int64_t p1);
  void (*add_sums)(const Sums<C>&, int64_t c0, int64_t c1, C* ih, C* hh, char* memory);
  // The sums of columns [c0, c1) of n rows, `row` elements apart, on top of `to`.
  void (*sum_columns)(const C* rows, int64_t n, int64_t row, int64_t c0, int64_t c1, double* to);
};

struct Isa {
  const char* name;
  bool (*supported)();
  const Kernels<float>* f32;
  const Kernels<double>* f64;
  const Kernels<float>* bf16;  // for layers of bfloat16; null: those are computed as float
};

extern const Isa isa_base, isa_avx2, isa_avx512, isa_avx512bf16, isa_amx;
extern const Kernels<float> avx512_f32;  // amx and avx512bf16 compute all but bfloat16 as avx512 does
extern const Kernels<double> avx512_f64;

// The instruction set in use: the best supported, or FASTRNN_CPU_ISA. Throws std::runtime_error for an unknown or
// unsupported name.
const Isa& isa();

// Every supported instruction set, best first; ends with null.
const Isa* const* isas();

// Values per hidden unit and row in the pre-activation buffer and the full tape: lstm i f g o, gru r z n and W_hn h +
// b_hn.
constexpr int64_t pre_width(Cell cell) { return cell == Cell::kLstm || cell == Cell::kGru ? 4 : 1; }
constexpr int64_t gate_count(Cell cell) { return cell == Cell::kLstm ? 4 : cell == Cell::kGru ? 3 : 1; }
constexpr bool has_c(Cell cell) { return cell == Cell::kLstm; }

// b_ih + b_hh, either null, in columns_of; a GRU's n keeps its two apart, in columns n and hn.
template <class C>
void sum_bias(Cell cell, const C* b_ih, const C* b_hh, int64_t H, C* to) {
  const int64_t width = pre_width(cell), gates = gate_count(cell);
  for (int64_t i = 0; i < width * H; ++i) to[i] = C(0);
  for (int64_t unit = 0; unit < H; unit += kUnitBlock) {
    const Columns columns = columns_of(unit, H, width);
    for (int64_t gate = 0; gate < gates; ++gate) {
      const int64_t hidden = cell == Cell::kGru && gate == 2 ? 3 : gate;
      C *const x = to + columns.at + gate * columns.apart, *const h = to + columns.at + hidden * columns.apart;
      if (b_ih != nullptr) {
        for (int64_t i = 0; i < columns.apart; ++i) x[i] += b_ih[gate * H + unit + i];
      }
      if (b_hh != nullptr) {
        for (int64_t i = 0; i < columns.apart; ++i) h[i] += b_hh[gate * H + unit + i];
      }
    }
  }
}

// What the plan of a pass depends on; units are split by plain panels in backward and for an Elman cell.
inline Problem problem_of(Cell cell, Sizes sizes, int directions, int lanes, int element, bool backward, int threads) {
  const int vectors = backward || gate_count(cell) == 1 ? 4 : 1, units = vectors * lanes;
  Problem problem;
  problem.T = sizes.T, problem.B = sizes.B, problem.I = sizes.I, problem.H = sizes.H;
  problem.gates = static_cast<int>(gate_count(cell));
  problem.width = static_cast<int>(pre_width(cell));
  problem.directions = directions;
  problem.element = element, problem.vector_bytes = lanes * element;
  problem.backward = backward;
  problem.unit_panels = static_cast<int>((sizes.H + units - 1) / units);
  problem.regions = backward ? 10 : 2;
  problem.threads = threads;
  return problem;
}

}  // namespace fastrnn::cpu
