// What was measured of work on this CPU, as Python hands it over (fastrnn/_cpu.py): whether torch's layer is faster,
// and how threads are to split a layer. Nobody asks as long as nothing was measured.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "cpu/plan.h"

namespace fastrnn::cpu {

enum Size { kSteps, kRows, kInputs, kUnits, kSizes };

// A call's kind; `cell` and `dtype` are numbers that only have to be the same for the same.
struct Kind {
  int64_t cell = 0, dtype = 0, directions = 1, layers = 1;  // layers: 0 for a cell, and in a part of a call for any
  int64_t trains = 0, packed = 0;
  bool operator==(const Kind&) const = default;
};

struct Work {
  Kind kind;
  int64_t sizes[kSizes];
};

// Holds for works of the kind, of sizes in a range, with as many threads of torch's, so many of which have cores.
struct Tuned {
  Kind kind;
  int64_t threads, cores;
  int64_t least[kSizes], most[kSizes];
  int64_t steps;  // that were measured
  bool by_torch;
  Split split;
};

struct Tuning {
  std::vector<Tuned> calls, layers;
};

enum class Whose { kUnknown, kAsEver, kOurs, kTorchs };  // kUnknown: nobody has looked for records yet

// False where nothing was measured, nothing is forced, and `whose` and `split_for` need not be asked.
extern std::atomic<bool> tuned;

// Who is to compute a call of a stack of layers, or of a cell, without gradients or with.
Whose whose(const Work& work, int threads);

// How a layer of it is to be split, if that was measured.
Split split_for(const Work& work, int threads);

void tell_tuning(Tuning tuning);

// For the whole process: `whose` says so, of all works, unless it is kUnknown; and every layer is split so, if by any,
// whoever else keeps a core busy: who measures wants to know what threads take.
void force_way(Whose whose, Split split);
bool is_forced();

// Whether torch's layers are to be kept out, whatever was measured.
void keep_own_numbers(bool on);

}  // namespace fastrnn::cpu
