// Runs a kernel, block after block, one fiber for every thread. Barriers and warp operations are
// the points at which another thread goes on, in an order that MFAC_SIMT_ORDER names: forward,
// reverse or random:SEED.
//
// What is found without a sanitizer: barriers that not every thread of the block, or warp
// operations that not every thread of their mask, reaches; use of shared memory before it is
// written (its bytes are 0xff: NaN, or -1). ThreadSanitizer takes every CUDA thread for a thread
// and finds what only a missing barrier lets happen; AddressSanitizer finds what lies outside of
// shared arrays and of tensors.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "fiber.h"

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace simt {

constexpr unsigned kWarp = 32, kMostThreads = 1024;
constexpr std::size_t kSharedBytes = 48 * 1024;  // what every GPU gives a block without being asked
constexpr std::size_t kGuard = 128;              // around every shared array
// Blocks take turns with teams of fibers that have no barrier in common: a fiber that had been in
// both of two blocks would order their accesses, and no race between them would show.
#if defined(__SANITIZE_THREAD__)
constexpr unsigned kTeams = 2;
#else
constexpr unsigned kTeams = 1;
#endif

enum class State { kReady, kAtBarrier, kAtWarpOp, kDone };

struct Place {
  const char* file = "";
  int line = 0;
  bool operator==(const Place& other) const { return line == other.line && !std::strcmp(file, other.file); }
};

struct Thread {
  Stack stack;
  uint3 index{};
  unsigned lane = 0, warp = 0;
  State state = State::kDone;
  Place place;
  std::string error;
  // of a warp operation: who takes part, whose value is asked for, the value given and those
  // received
  uint32_t mask = 0;
  unsigned source = 0;
  uint64_t given = 0, received = 0;
  uint32_t votes = 0;
};

struct SharedArray {
  const void* key;
  char* memory;
};

class Block {
 public:
  uint3 index{};
  dim3 size, grid;

  // `body` is the kernel with its arguments.
  void launch(dim3 grid, dim3 block, const std::function<void()>& body);
  // The array that a declaration, `key`, stands for in the block that runs.
  void* shared(const void* key, std::size_t bytes);
  void barrier(Place place);
  void warp_op(uint32_t mask, unsigned source, uint64_t value, bool orders_memory, Place place);
  // Whether an address is no global memory: shared, of the running thread's stack, or of the
  // emulation.
  bool owns(const void* p) const;

  static Block& instance() {
    static Block block;
    return block;
  }

 private:
  Block() : main_(this_stack()) { arena_ = map_memory(kArenaBytes); }

  static void run_thread();
  void prepare(uint64_t turn);
  void run(uint64_t turn);
  void resume(Thread& thread);
  bool run_warp(unsigned warp);
  bool finish_warp_op(unsigned warp);
  bool finish_barrier();
  [[noreturn]] void stuck() const;
  unsigned threads() const { return size.x * size.y * size.z; }
  unsigned lanes(unsigned warp) const { return std::min(kWarp, threads() - warp * kWarp); }

#if defined(__SANITIZE_THREAD__)
  // Every block of a launch has memory that none had before, or its accesses would be taken for
  // races with those of the block that had it.
  static constexpr std::size_t kArenaBytes = std::size_t{1} << 32;
#else
  static constexpr std::size_t kArenaBytes = 4 * kSharedBytes;
#endif

  Stack main_;
  std::vector<Thread> pool_[kTeams];
  std::vector<Thread*> thread_;  // in the order of their index
  std::vector<SharedArray> arrays_;
  char* arena_;
  std::size_t arena_used_ = 0, shared_bytes_ = 0;
  const std::function<void()>* body_ = nullptr;
  unsigned live_ = 0, barriers_ = 0;
  bool reverse_ = false, random_ = false;
  std::mt19937_64 generator_;
  unsigned team_ = 0;
  // ThreadSanitizer's clocks
  char begin_tag_, end_tag_, barrier_tag_[kTeams][2], warp_tag_[kTeams][kMostThreads / kWarp];
};

inline Thread* current = nullptr;

SIMT_UNSEEN inline bool Block::owns(const void* p) const {
  const auto is_in = [p](const void* begin, std::size_t bytes) {
    return static_cast<const char*>(p) - static_cast<const char*>(begin) < std::ptrdiff_t(bytes) && p >= begin;
  };
  return is_in(current->stack.base, current->stack.bytes) || is_in(arena_, kArenaBytes) ||
         is_in(current, sizeof(*current)) || is_in(&current, sizeof(current)) || is_in(this, sizeof(*this));
}

#if defined(__SANITIZE_THREAD__)
#define SIMT_RELEASE(tag) __tsan_release(tag)
#define SIMT_ACQUIRE(tag) __tsan_acquire(tag)
#else
#define SIMT_RELEASE(tag) (void)(tag)
#define SIMT_ACQUIRE(tag) (void)(tag)
#endif

SIMT_UNSEEN inline void Block::launch(dim3 grid_size, dim3 block_size, const std::function<void()>& body) {
  Unseen unseen;
  const char* order = std::getenv("MFAC_SIMT_ORDER");
  const std::string wanted = order == nullptr ? "forward" : order;
  reverse_ = wanted == "reverse";
  random_ = wanted.rfind("random:", 0) == 0;
  if (!reverse_ && !random_ && wanted != "forward") throw std::runtime_error("simt: unknown order " + wanted);
  if (random_) generator_.seed(std::stoull(wanted.substr(7)));
  grid = grid_size;
  size = block_size;
  body_ = &body;
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  if (threads() == 0 || threads() > kMostThreads || size.z > 64) throw std::runtime_error("simt: bad block size");
  if (blocks == 0 || grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535)
    throw std::runtime_error("simt: bad grid size");
  main_ = this_stack();
  for (std::vector<Thread>& team : pool_) {
    team.reserve(kMostThreads);
    while (team.size() < threads()) {
      team.emplace_back();
      team.back().stack = make_stack(&Block::run_thread);
    }
  }
  arena_used_ = 0;
  SIMT_RELEASE(&begin_tag_);
  for (uint64_t turn = 0; turn < blocks; ++turn) {
    const uint64_t i = reverse_ ? blocks - 1 - turn : turn;
    index = {unsigned(i % grid.x), unsigned(i / grid.x % grid.y), unsigned(i / (uint64_t{grid.x} * grid.y))};
    run(turn);
  }
}

// The fibers, each of which takes one thread of every block.
SIMT_UNSEEN inline void Block::run_thread() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
  Block& block = instance();
  for (;;) {
    SIMT_ACQUIRE(&block.begin_tag_);
    try {
      (*block.body_)();
    } catch (const std::exception& e) {
      current->error = e.what();
    }
    SIMT_RELEASE(&block.end_tag_);
    current->state = State::kDone;
    switch_to(current->stack, block.main_);
  }
}

SIMT_UNSEEN inline void Block::prepare(uint64_t turn) {
  team_ = turn % kTeams;
  arrays_.clear();
  shared_bytes_ = 0;
#if defined(__SANITIZE_ADDRESS__)
  __asan_poison_memory_region(arena_, kArenaBytes);
#endif
#if defined(__SANITIZE_THREAD__)
  if (arena_used_ + 4 * kSharedBytes > kArenaBytes) throw std::runtime_error("simt: too many blocks for one launch");
#else
  arena_used_ = 0;
#endif
  live_ = threads();
  thread_.resize(live_);
  for (unsigned i = 0; i < live_; ++i) {
    Thread& thread = pool_[team_][i];
    thread_[i] = &thread;
    thread.index = {i % size.x, i / size.x % size.y, i / (size.x * size.y)};
    thread.lane = i % kWarp;
    thread.warp = i / kWarp;
    thread.state = State::kReady;
    thread.error.clear();
  }
}

SIMT_UNSEEN inline void Block::run(uint64_t turn) {
  prepare(turn);
  std::vector<unsigned> warps((threads() + kWarp - 1) / kWarp);
  for (unsigned w = 0; w < warps.size(); ++w) warps[w] = reverse_ ? warps.size() - 1 - w : w;
  while (live_ > 0) {
    if (random_) std::shuffle(warps.begin(), warps.end(), generator_);
    bool progress = false;
    for (const unsigned warp : warps) {  // one warp goes as far as it can before the next
      do progress |= run_warp(warp);
      while (finish_warp_op(warp));
    }
    if (!finish_barrier() && !progress && live_ > 0) stuck();
  }
  SIMT_ACQUIRE(&end_tag_);
}

SIMT_UNSEEN inline bool Block::run_warp(unsigned warp) {
  unsigned order[kWarp];
  const unsigned count = lanes(warp);
  for (unsigned i = 0; i < count; ++i) order[i] = warp * kWarp + (reverse_ ? count - 1 - i : i);
  if (random_) std::shuffle(order, order + count, generator_);
  bool progress = false;
  for (unsigned i = 0; i < count; ++i)
    if (thread_[order[i]]->state == State::kReady) {
      resume(*thread_[order[i]]);
      progress = true;
    }
  return progress;
}

SIMT_UNSEEN inline void Block::resume(Thread& thread) {
  current = &thread;
  switch_to(main_, thread.stack);
  if (!thread.error.empty()) throw std::runtime_error(thread.error);
  if (thread.state == State::kDone) --live_;
}

// Carries out the operations of a warp whose masks are complete.
SIMT_UNSEEN inline bool Block::finish_warp_op(unsigned warp) {
  Thread** lane = thread_.data() + warp * kWarp;
  bool any = false;
  for (unsigned i = 0; i < lanes(warp); ++i) {
    if (lane[i]->state != State::kAtWarpOp) continue;
    const uint32_t mask = lane[i]->mask;
    uint32_t votes = 0;
    bool complete = true;
    for (unsigned l = 0; l < kWarp; ++l) {
      if (!(mask >> l & 1)) continue;
      complete = complete && l < lanes(warp) && lane[l]->state == State::kAtWarpOp && lane[l]->mask == mask &&
                 lane[l]->place == lane[i]->place;
      if (complete && lane[l]->given != 0) votes |= 1u << l;
    }
    if (!complete) continue;
    for (unsigned l = 0; l < kWarp; ++l) {
      if (!(mask >> l & 1)) continue;
      const unsigned source = lane[l]->source;
      constexpr uint64_t kUndefined = 0xbadbadbadbadbadb;
      lane[l]->received = source < kWarp && (mask >> source & 1) ? lane[source]->given : kUndefined;
      lane[l]->votes = votes;
      lane[l]->state = State::kReady;
    }
    any = true;
  }
  return any;
}

// Opens the barrier when all threads of the block are at the same one. A thread that has returned
// never gets there.
SIMT_UNSEEN inline bool Block::finish_barrier() {
  if (live_ != threads()) return false;
  for (const Thread* thread : thread_)
    if (thread->state != State::kAtBarrier || !(thread->place == thread_[0]->place)) return false;
  for (Thread* thread : thread_) thread->state = State::kReady;
  ++barriers_;
  return true;
}

inline void Block::stuck() const {
  static const char* const kNames[] = {"ready", "at a barrier", "at a warp operation", "returned"};
  std::string message = "simt: divergent barrier in block (" + std::to_string(index.x) + ", " +
                        std::to_string(index.y) + ", " + std::to_string(index.z) + "):";
  std::string last;
  for (unsigned i = 0; i < threads(); ++i) {
    std::string state = kNames[static_cast<int>(thread_[i]->state)];
    if (thread_[i]->state != State::kDone)
      state += std::string(", ") + thread_[i]->place.file + ":" + std::to_string(thread_[i]->place.line);
    if (state != last) message += " [thread " + std::to_string(i) + " on: " + state + "]";
    last = state;
  }
  throw std::runtime_error(message);
}

SIMT_UNSEEN inline void* Block::shared(const void* key, std::size_t bytes) {
  Unseen unseen;
  for (const SharedArray& array : arrays_)
    if (array.key == key) return array.memory;
  shared_bytes_ += (bytes + 15) / 16 * 16;
  if (shared_bytes_ > kSharedBytes) throw std::runtime_error("simt: more than 48 KiB of shared memory");
  char* memory = arena_ + arena_used_ + kGuard;
  arena_used_ += (bytes + kGuard + kGuard - 1) / kGuard * kGuard + kGuard;
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(memory, bytes);
#endif
  volatile char* byte = memory;  // memset would be seen by ThreadSanitizer
  for (std::size_t i = 0; i < bytes; ++i) byte[i] = char(0xff);
  arrays_.push_back({key, memory});
  return memory;
}

SIMT_UNSEEN inline void Block::barrier(Place place) {
  Unseen unseen;
  Thread& me = *current;
  char* tag = &barrier_tag_[team_][barriers_ & 1];
  me.place = place;
  me.state = State::kAtBarrier;
  SIMT_RELEASE(tag);
  switch_to(me.stack, main_);
  SIMT_ACQUIRE(tag);
}

SIMT_UNSEEN inline void Block::warp_op(uint32_t mask, unsigned source, uint64_t value, bool orders_memory,
                                       Place place) {
  Unseen unseen;
  Thread& me = *current;
  if (!(mask >> me.lane & 1))
    throw std::runtime_error(std::string("simt: a thread outside its mask at ") + place.file + ":" +
                             std::to_string(place.line));
  me.mask = mask;
  me.source = source;
  me.given = value;
  me.place = place;
  me.state = State::kAtWarpOp;
  if (orders_memory) SIMT_RELEASE(&warp_tag_[team_][me.warp]);
  switch_to(me.stack, main_);
  if (orders_memory) SIMT_ACQUIRE(&warp_tag_[team_][me.warp]);
}

}  // namespace simt
