// Memory that a kernel needs while it works, on a cache line's boundary. A little of it comes from the stack: the
// allocator's way to aligned memory takes a tenth of a small call.
#pragma once
#include <cstddef>
#include <cstdint>
#include <new>

namespace ff {

class ScratchMemory {
 public:
  explicit ScratchMemory(int64_t bytes)
      : far_(static_cast<size_t>(bytes) <= sizeof(near_) ? nullptr
                                                         : ::operator new(static_cast<size_t>(bytes), kLine)) {}
  ScratchMemory(const ScratchMemory&) = delete;
  ScratchMemory& operator=(const ScratchMemory&) = delete;
  ~ScratchMemory() {
    if (far_ != nullptr) ::operator delete(far_, kLine);
  }
  void* get() { return far_ == nullptr ? near_ : far_; }

 private:
  static constexpr std::align_val_t kLine{64};
  alignas(64) std::byte near_[2048];
  void* far_;
};

}  // namespace ff
