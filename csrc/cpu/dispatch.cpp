#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>

#include "cpu/rnn.h"

namespace fastrnn::cpu {
namespace {

constexpr int kCount = 5;
const Isa* const kAll[kCount] = {&isa_amx, &isa_avx512bf16, &isa_avx512, &isa_avx2, &isa_base};

// Intel's CPUs after Cooper Lake leave bfloat16 to AMX: vdpbf16ps, two multiply-adds a lane, takes as long as four fmas
// there (Sapphire Rapids), so that without AMX float32 is faster.
bool slow_pairs() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  return __builtin_cpu_is("intel") && !__builtin_cpu_is("cooperlake");
#else
  return false;
#endif
}

const Isa& pick() {
  const char* wanted = std::getenv("FASTRNN_CPU_ISA");
  if (wanted == nullptr || *wanted == '\0') return **isas();
  for (const Isa* isa : kAll) {
    if (std::strcmp(isa->name, wanted) != 0) continue;
    if (isa->supported()) return *isa;
    throw std::runtime_error(std::string("FASTRNN_CPU_ISA=") + wanted + ": this CPU does not have it");
  }
  throw std::runtime_error(std::string("FASTRNN_CPU_ISA=") + wanted +
                           ": expected amx, avx512bf16, avx512, avx2 or base");
}

}  // namespace

const Isa& isa() {
  static const Isa& chosen = pick();  // a throw leaves it unset: the next call tries, and reports, again
  return chosen;
}

const Isa* const* isas() {
  static const Isa* supported[kCount + 1] = {};
  static const bool filled = [] {
    const Isa** const end =
        std::copy_if(kAll, kAll + kCount, supported, [](const Isa* isa) { return isa->supported(); });
    const Isa** const pairs = std::find(supported, end, &isa_avx512bf16);
    if (pairs != end && slow_pairs()) std::swap(pairs[0], pairs[1]);
    return true;
  }();
  (void)filled;
  return supported;
}

}  // namespace fastrnn::cpu
