// The variant that every CPU of the architecture runs: SSE2 on x86-64, NEON on 64-bit Arm.
#include "cpu/rnn.h"

#if defined(__aarch64__)
#include <arm_neon.h>
#endif

#define FASTRNN_NS base
#define FASTRNN_VECTOR_BYTES 16
#include "cpu/variant.h"

namespace fastrnn::cpu {
const Isa isa_base = {"base", [] { return true; }, &base::kernels_f32, &base::kernels_f64, nullptr};
}  // namespace fastrnn::cpu
