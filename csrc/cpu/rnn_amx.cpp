#include "cpu/rnn.h"

#if defined(__x86_64__) && defined(__linux__)
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__clang__)
#pragma clang attribute push(                                                                                 \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,amx-tile,amx-bf16,avx2,fma,f16c"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,amx-tile,amx-bf16,avx2,fma,f16c")
#endif
#define FASTRNN_NS amx
#define FASTRNN_VECTOR_BYTES 64
#define FASTRNN_BF16
#define FASTRNN_AMX
#include "cpu/variant.h"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace fastrnn::cpu {
namespace {
bool supported() {
  if (!isa_avx512bf16.supported() || !__builtin_cpu_supports("amx-bf16")) return false;
  // Linux gives the tile registers only to processes that ask.
  constexpr long kRequest = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}
}  // namespace
const Isa isa_amx = {"amx", supported, &avx512_f32, &avx512_f64, &amx::kernels_f32};
}  // namespace fastrnn::cpu
#else
namespace fastrnn::cpu {
const Isa isa_amx = {"amx", [] { return false; }, nullptr, nullptr, nullptr};
}  // namespace fastrnn::cpu
#endif
