// What a tile of the product is, by instruction set; the numbers are those that were measured to be the fastest.
// Included once per instruction set inside FASTRNN_NS.
//
// accumulators: vectors of sums, of as many registers as there are, less those for factors. A tile has R rows and
//   kVecs vectors of columns; its loop holds the fewer of the two in registers and loads the others one by one.
// rows: at most; more hide no more of a multiply-add's latency.
// fetching: rows from which on a tile has the time to fetch the next panel, which may come from beyond the caches,
// ahead: and its own columns, as many factors before their turn, where the CPU does not see them coming; else 0.
#if FASTRNN_VECTOR_BYTES == 64 || defined(__aarch64__)
struct Tiles {  // of 32 registers
  static constexpr int accumulators = 24, rows = 8, fetching = 4, ahead = 8;
};
#elif FASTRNN_VECTOR_BYTES == 32
struct Tiles {  // of 16
  static constexpr int accumulators = 12, rows = 6, fetching = 3, ahead = 0;
};
#else
struct Tiles {  // of 16, one of them for products: there is no fused multiply-add
  static constexpr int accumulators = 8, rows = 4, fetching = 3, ahead = 0;
};
#endif
