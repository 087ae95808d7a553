#include "cpu/rnn.h"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
#define FASTRNN_NS avx2
#define FASTRNN_VECTOR_BYTES 32
#include "cpu/variant.h"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace fastrnn::cpu {
namespace {
bool supported() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
}  // namespace
const Isa isa_avx2 = {"avx2", supported, &avx2::kernels_f32, &avx2::kernels_f64, nullptr};
}  // namespace fastrnn::cpu
#else
namespace fastrnn::cpu {
const Isa isa_avx2 = {"avx2", [] { return false; }, nullptr, nullptr, nullptr};
}  // namespace fastrnn::cpu
#endif
