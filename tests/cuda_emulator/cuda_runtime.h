// A CUDA device in plain C++, for tests: csrc/cuda/*.cu compile against this header with g++ and run on CPU tensors,
// host code and kernels alike. Each CUDA thread is a fiber that runs until it waits; waiting at different barriers, or
// shuffling with a lane that has left, aborts. Shared memory is static, because blocks run one after the other.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x_ = 1) : x(x_) {}  // NOLINT: implicit as in CUDA
};

// The built-in variables. A fiber gets its own index whenever it is resumed.
inline dim3 threadIdx, blockIdx, gridDim, blockDim;

namespace emulated {

constexpr unsigned kWarp = 32;
constexpr size_t kStack = 128 << 10;

enum class State { kReady, kAtWarp, kAtBlock, kDone };

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStack]};
  State state = State::kDone;
  alignas(16) unsigned char slot[16];
};

struct Machine {
  std::vector<std::unique_ptr<Fiber>> fibers;
  ucontext_t scheduler;
  unsigned threads = 0, current = 0;
  unsigned long launches = 0;
  std::function<void()> body;
};

inline Machine& machine() {
  static Machine instance;
  return instance;
}

[[noreturn]] inline void die(const char* what) {
  std::fprintf(stderr, "emulated CUDA: %s\n", what);
  std::abort();
}

inline void wait(State state) {
  Machine& m = machine();
  Fiber& fiber = *m.fibers[m.current];
  fiber.state = state;
  swapcontext(&fiber.context, &m.scheduler);
}

inline void fiber_main() {
  Machine& m = machine();
  m.body();
  m.fibers[m.current]->state = State::kDone;
}

inline bool release(unsigned begin, unsigned end, State waiting) {
  Machine& m = machine();
  unsigned at = 0, done = 0;
  for (unsigned i = begin; i < end; ++i) {
    at += m.fibers[i]->state == waiting;
    done += m.fibers[i]->state == State::kDone;
  }
  if (at == 0 || at + done < end - begin) return false;
  if (done > 0) die(waiting == State::kAtWarp ? "a shuffle names a lane that has left" : "a thread left before __syncthreads");
  for (unsigned i = begin; i < end; ++i) m.fibers[i]->state = State::kReady;
  return true;
}

inline void run_block() {
  Machine& m = machine();
  while (m.fibers.size() < m.threads) m.fibers.push_back(std::make_unique<Fiber>());
  for (unsigned i = 0; i < m.threads; ++i) {
    Fiber& fiber = *m.fibers[i];
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = &m.scheduler;
    makecontext(&fiber.context, fiber_main, 0);
    fiber.state = State::kReady;
  }
  // A warp runs as far ahead of the others as barriers let it, the first or the last one first: a missing barrier shows
  // in one order or in the other.
  const bool backwards = m.launches % 2 != 0;
  do {
    for (unsigned n = 0; n < m.threads; n += kWarp) {
      const unsigned warp = backwards ? m.threads - kWarp - n : n;
      do {
        for (unsigned lane = 0; lane < kWarp; ++lane) {
          m.current = warp + (backwards ? kWarp - 1 - lane : lane);
          if (m.fibers[m.current]->state != State::kReady) continue;
          threadIdx.x = m.current;
          swapcontext(&m.scheduler, &m.fibers[m.current]->context);
        }
      } while (release(warp, warp + kWarp, State::kAtWarp));
    }
  } while (release(0, m.threads, State::kAtBlock));
  for (unsigned i = 0; i < m.threads; ++i) {
    if (m.fibers[i]->state != State::kDone) die("threads wait at different barriers for ever");
  }
}

inline void launch(unsigned blocks, unsigned threads, std::function<void()> body) {
  Machine& m = machine();
  if (blocks == 0 || threads == 0 || threads > 1024 || threads % kWarp != 0) die("bad launch configuration");
  m.threads = threads;
  m.body = std::move(body);
  ++m.launches;
  gridDim.x = blocks;
  blockDim.x = threads;
  for (unsigned block = 0; block < blocks; ++block) {
    blockIdx.x = block;
    run_block();
  }
}

}  // namespace emulated

inline void __syncthreads() { emulated::wait(emulated::State::kAtBlock); }

namespace emulated {
// source(own lane) is the lane whose value is asked for.
template <class V, class Source>
V shuffle(unsigned mask, V value, Source source) {
  static_assert(sizeof(V) <= 16);
  if (mask != 0xffffffffu) die("only whole-warp shuffles are emulated");
  Machine& m = machine();
  const unsigned lane = m.current % kWarp, first = m.current - lane;
  std::memcpy(m.fibers[m.current]->slot, &value, sizeof value);
  wait(State::kAtWarp);
  std::memcpy(&value, m.fibers[first + source(lane)]->slot, sizeof value);
  wait(State::kAtWarp);
  return value;
}
}  // namespace emulated

template <class V>
V __shfl_xor_sync(unsigned mask, V value, int lane_mask) {
  return emulated::shuffle(mask, value, [=](unsigned lane) { return lane ^ static_cast<unsigned>(lane_mask); });
}

template <class V>
V __shfl_up_sync(unsigned mask, V value, unsigned step) {
  return emulated::shuffle(mask, value, [=](unsigned lane) { return lane < step ? lane : lane - step; });
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }

template <class V>
V emulated_atomic_add(V* at, V value) {
  const V before = *at;
  *at += value;
  return before;
}
inline unsigned long long atomicAdd(unsigned long long* at, unsigned long long value) { return emulated_atomic_add(at, value); }
inline unsigned atomicAdd(unsigned* at, unsigned value) { return emulated_atomic_add(at, value); }

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0 };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount };
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

inline const char* cudaGetErrorName(cudaError_t) { return "none"; }
inline const char* cudaGetErrorString(cudaError_t) { return "none"; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  const char* count = std::getenv("FASTFORGET_EMULATED_MULTIPROCESSORS");
  *value = count != nullptr ? std::max(1, std::atoi(count)) : 1;
  return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* at, int value, size_t bytes, cudaStream_t) {
  std::memset(at, value, bytes);
  return cudaSuccess;
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...), Arguments&&... arguments) {
  emulated::launch(config->gridDim.x, config->blockDim.x, [&] { kernel(static_cast<Parameters>(arguments)...); });
  return cudaSuccess;
}
