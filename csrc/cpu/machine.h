// What the plan needs to know of the machine: a table of kinds of CPUs, by what CPUID says. Nothing is measured, so
// that a machine has one plan, whatever else it does at the first call; a plan hardly differs where a fact is off by
// half.
#pragma once

#include <cstdint>
#include <string>

namespace fastrnn::cpu {

// What a CPU and its system say of themselves.
struct Cpu {
  std::string vendor;  // "AuthenticAMD"
  int family = 0, model = 0;
  int64_t second_level = 0;  // bytes; asked where the table does not know the CPU
};

struct Machine {
  std::string kind;          // "AMD Zen 4", "an unknown CPU"
  int64_t second_level = 0;  // bytes of cache that a core has to itself, or its share
  // Bytes a cycle of a core: of numbers that are multiplied and added, in vectors of up to 32 bytes and of 64; of
  // weights that come from the second-level cache, and from beyond.
  double narrow = 0, wide = 0, near = 0, far = 0;

  double multiplied(int vector_bytes) const { return vector_bytes > 32 ? wide : narrow; }
};

Machine machine_of(const Cpu& cpu);

// The one that this process runs on, looked at once.
const Machine& machine();

// "AMD Zen 4: 1024 KiB of second-level cache, …".
std::string describe(const Machine& machine);

}  // namespace fastrnn::cpu
