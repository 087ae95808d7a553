#include "cpu/machine.h"

#include <unistd.h>

#include <cstring>
#include <fstream>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace fastrnn::cpu {
namespace {

struct Kind {
  const char* vendor;
  int family, first, last;  // models
  const char* name;
  int kibibytes;  // of second-level cache
  int narrow, wide, near, far;
};

constexpr char kAmd[] = "AuthenticAMD", kHygon[] = "HygonGenuine", kIntel[] = "GenuineIntel";

// By the makers' optimization manuals; `near` and `far` are what one row of an LSTM reads its weights at. Of CPUs with
// cores of two kinds the faster one counts.
constexpr Kind kKinds[] = {
    {kAmd, 0x17, 0x00, 0x2f, "AMD Zen", 512, 32, 32, 24, 12},
    {kHygon, 0x18, 0x00, 0xff, "Hygon Zen", 512, 32, 32, 24, 12},
    {kAmd, 0x17, 0x30, 0xff, "AMD Zen 2", 512, 64, 64, 24, 12},
    {kAmd, 0x19, 0x10, 0x1f, "AMD Zen 4", 1024, 64, 64, 24, 12},
    {kAmd, 0x19, 0x60, 0x7f, "AMD Zen 4", 1024, 64, 64, 24, 12},
    {kAmd, 0x19, 0xa0, 0xaf, "AMD Zen 4", 1024, 64, 64, 24, 12},
    {kAmd, 0x19, 0x00, 0xff, "AMD Zen 3", 512, 64, 64, 24, 12},
    {kAmd, 0x1a, 0x20, 0x2f, "AMD Zen 5 mobile", 1024, 64, 64, 32, 12},
    {kAmd, 0x1a, 0x60, 0x6f, "AMD Zen 5 mobile", 1024, 64, 64, 32, 12},
    {kAmd, 0x1a, 0x00, 0xff, "AMD Zen 5", 1024, 64, 128, 48, 12},
    {kIntel, 6, 0x3c, 0x3f, "Intel Haswell", 256, 64, 64, 24, 8},
    {kIntel, 6, 0x45, 0x47, "Intel Haswell", 256, 64, 64, 24, 8},
    {kIntel, 6, 0x4f, 0x4f, "Intel Broadwell Xeon", 256, 64, 64, 24, 8},
    {kIntel, 6, 0x56, 0x56, "Intel Broadwell Xeon", 256, 64, 64, 24, 8},
    {kIntel, 6, 0x4e, 0x4e, "Intel Skylake", 256, 64, 64, 24, 10},
    {kIntel, 6, 0x5e, 0x5e, "Intel Skylake", 256, 64, 64, 24, 10},
    {kIntel, 6, 0x8e, 0x8e, "Intel Skylake", 256, 64, 64, 24, 10},
    {kIntel, 6, 0x9e, 0x9e, "Intel Skylake", 256, 64, 64, 24, 10},
    {kIntel, 6, 0xa5, 0xa6, "Intel Skylake", 256, 64, 64, 24, 10},
    {kIntel, 6, 0x55, 0x55, "Intel Skylake Xeon", 1024, 64, 128, 32, 8},
    {kIntel, 6, 0x6a, 0x6c, "Intel Ice Lake Xeon", 1280, 64, 128, 32, 8},
    {kIntel, 6, 0x7d, 0x7e, "Intel Ice Lake", 512, 64, 64, 32, 10},
    {kIntel, 6, 0x8c, 0x8d, "Intel Tiger Lake", 1280, 64, 64, 32, 10},
    {kIntel, 6, 0xa7, 0xa7, "Intel Rocket Lake", 512, 64, 64, 32, 10},
    {kIntel, 6, 0x8f, 0x8f, "Intel Sapphire Rapids", 2048, 64, 128, 32, 8},
    {kIntel, 6, 0xcf, 0xcf, "Intel Emerald Rapids", 2048, 64, 128, 32, 8},
    {kIntel, 6, 0xad, 0xae, "Intel Granite Rapids", 2048, 64, 128, 32, 8},
    {kIntel, 6, 0x97, 0x97, "Intel Alder Lake", 1280, 64, 64, 32, 10},
    {kIntel, 6, 0x9a, 0x9a, "Intel Alder Lake", 1280, 64, 64, 32, 10},
    {kIntel, 6, 0xb7, 0xb7, "Intel Raptor Lake", 2048, 64, 64, 32, 10},
    {kIntel, 6, 0xba, 0xba, "Intel Raptor Lake", 2048, 64, 64, 32, 10},
    {kIntel, 6, 0xbf, 0xbf, "Intel Raptor Lake", 2048, 64, 64, 32, 10},
    {kIntel, 6, 0xaa, 0xac, "Intel Meteor Lake", 2048, 64, 64, 32, 10},
    {kIntel, 6, 0xb5, 0xb5, "Intel Arrow Lake", 3072, 64, 64, 32, 10},
    {kIntel, 6, 0xc5, 0xc6, "Intel Arrow Lake", 3072, 64, 64, 32, 10},
    {kIntel, 6, 0xbd, 0xbd, "Intel Lunar Lake", 2560, 64, 64, 32, 10},
    {kIntel, 6, 0xbe, 0xbe, "Intel Gracemont", 512, 32, 32, 16, 8},
};

// Of the first core, whichever this thread happens to be on.
int64_t second_level() {
  for (const char* index : {"2", "1", "3"}) {
    const std::string folder = std::string("/sys/devices/system/cpu/cpu0/cache/index") + index;
    int level = 0;
    int64_t size = 0;
    char unit = 0;
    if (!(std::ifstream(folder + "/level") >> level) || level != 2) continue;
    if (std::ifstream(folder + "/size") >> size >> unit && size > 0) return size << (unit == 'M' ? 20 : 10);
  }
#ifdef _SC_LEVEL2_CACHE_SIZE
  const long size = sysconf(_SC_LEVEL2_CACHE_SIZE);
  if (size > 0) return size;
#endif
  return 1 << 20;
}

Cpu this_cpu() {
  Cpu cpu;
#if defined(__x86_64__)
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid(0, &a, &b, &c, &d) != 0) {
    for (const unsigned part : {b, d, c}) {
      char letters[4];
      std::memcpy(letters, &part, 4);
      cpu.vendor.append(letters, 4);
    }
  }
  if (__get_cpuid(1, &a, &b, &c, &d) != 0) {
    const unsigned family = a >> 8 & 0xf, model = a >> 4 & 0xf, more = a >> 16 & 0xf;
    cpu.family = static_cast<int>(family == 0xf ? family + (a >> 20 & 0xff) : family);
    cpu.model = static_cast<int>(family == 0xf || family == 6 ? more << 4 | model : model);
  }
#endif
  cpu.second_level = second_level();
  return cpu;
}

}  // namespace

Machine machine_of(const Cpu& cpu) {
  for (const Kind& k : kKinds) {
    if (cpu.vendor != k.vendor || cpu.family != k.family || cpu.model < k.first || cpu.model > k.last) continue;
    return {k.name,
            int64_t{k.kibibytes} << 10,
            static_cast<double>(k.narrow),
            static_cast<double>(k.wide),
            static_cast<double>(k.near),
            static_cast<double>(k.far)};
  }
  return {"an unknown CPU", cpu.second_level > 0 ? cpu.second_level : 1 << 20, 64, 64, 24, 10};
}

const Machine& machine() {
  static const Machine here = machine_of(this_cpu());
  return here;
}

std::string describe(const Machine& m) {
  const auto text = [](double bytes) { return std::to_string(static_cast<int>(bytes)); };
  return m.kind + ": " + std::to_string(m.second_level >> 10) +
         " KiB of second-level cache; bytes a cycle: " + text(m.narrow) + " multiplied (" + text(m.wide) +
         " with AVX-512), " + text(m.near) + " read from that cache, " + text(m.far) + " from beyond";
}

}  // namespace fastrnn::cpu
