// What a step takes within a cluster of thread blocks, which hand each other states through their shared memory: see
// cluster.py. No headers, so that any compiler of CUDA C++ makes it, at run time as well.

static __device__ __forceinline__ void meet() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

static __device__ __forceinline__ unsigned rank() {
  unsigned found;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(found));
  return found;
}

// Where an address of this block's shared memory lies in that of another block.
static __device__ __forceinline__ unsigned address_in(unsigned block, unsigned address) {
  unsigned found;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(found) : "r"(address), "r"(block));
  return found;
}

// At every step each block stores its part of the rows' units into the shared memory of all, they meet, and each reads
// everything: ROWS x UNITS numbers of 16 bits, in one of two places, used in turns. All words that block r stores at
// step s are 31 s + r; the sum of all words that a block has read goes to sums[block].
template <int BLOCKS, int ROWS, int UNITS> static __device__ void exchange(int steps, unsigned *sums) {
  extern __shared__ __align__(16) unsigned char places[]; // [2][ROWS][UNITS] of 2 bytes
  constexpr int ALL = ROWS * UNITS / 8, PART = ALL / BLOCKS, LINE = UNITS / 8 / BLOCKS; // of 16 bytes each
  const unsigned base = (unsigned)__cvta_generic_to_shared(places), mine = rank();
  unsigned sum = 0;
  meet(); // nobody stores into a block that has not begun
  for (int s = 0; s < steps; ++s) {
    const unsigned here = base + (s & 1) * ALL * 16, word = 31 * s + mine;
    for (unsigned i = threadIdx.x; i < ALL; i += blockDim.x) {
      const unsigned block = i / PART, row = i % PART / LINE, column = mine * LINE + i % LINE;
      asm volatile("st.shared::cluster.v4.u32 [%0], {%1, %1, %1, %1};"
                   :
                   : "r"(address_in(block, here + (row * (UNITS / 8) + column) * 16)), "r"(word)
                   : "memory");
    }
    meet();
    for (unsigned i = threadIdx.x; i < ALL; i += blockDim.x) {
      unsigned a, b, c, d;
      asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                   : "=r"(a), "=r"(b), "=r"(c), "=r"(d)
                   : "r"(here + i * 16)
                   : "memory");
      sum += a + b + c + d;
    }
  }
  meet(); // nobody ends whose shared memory others still store into
  atomicAdd(&sums[blockIdx.x], sum);
}

// The meeting alone; the sum of 31 s + r over all steps, by one thread.
static __device__ void meet_only(int steps, unsigned *sums) {
  unsigned sum = 0;
  for (int s = 0; s < steps; ++s) {
    meet();
    sum += 31 * s + rank();
  }
  if (threadIdx.x == 0) atomicAdd(&sums[blockIdx.x], sum);
}

#define KERNELS(BLOCKS)                                                                                                \
  extern "C" __global__ void __cluster_dims__(BLOCKS, 1, 1) __launch_bounds__(256, 1)                                  \
      exchange_##BLOCKS(int steps, unsigned *sums) {                                                                   \
    exchange<BLOCKS, 16, 512>(steps, sums);                                                                            \
  }                                                                                                                    \
  extern "C" __global__ void __cluster_dims__(BLOCKS, 1, 1) __launch_bounds__(256, 1)                                  \
      meet_##BLOCKS(int steps, unsigned *sums) {                                                                       \
    meet_only(steps, sums);                                                                                            \
  }

KERNELS(8)
KERNELS(16)
