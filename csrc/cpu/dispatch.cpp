#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "cpu/rnn.h"

namespace fastrnn::cpu {
namespace {

const Isa* const kAll[] = {&isa_amx, &isa_avx512, &isa_avx2, &isa_base};

const Isa& pick() {
  const char* wanted = std::getenv("FASTRNN_CPU_ISA");
  if (wanted == nullptr || *wanted == '\0') return **isas();
  for (const Isa* isa : kAll) {
    if (std::strcmp(isa->name, wanted) != 0) continue;
    if (isa->supported()) return *isa;
    throw std::runtime_error(std::string("FASTRNN_CPU_ISA=") + wanted + ": this CPU does not have it");
  }
  throw std::runtime_error(std::string("FASTRNN_CPU_ISA=") + wanted + ": expected amx, avx512, avx2 or base");
}

}  // namespace

const Isa& isa() {
  static const Isa& chosen = pick();  // a throw leaves it unset: the next call tries, and reports, again
  return chosen;
}

const Isa* const* isas() {
  static const Isa* supported[5] = {};
  static const bool filled = [] {
    int n = 0;
    for (const Isa* isa : kAll) {
      if (isa->supported()) supported[n++] = isa;
    }
    return true;
  }();
  (void)filled;
  return supported;
}

}  // namespace fastrnn::cpu
