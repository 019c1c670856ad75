// Memory of a thread's own, for as long as it lives.
#pragma once
#include <cstddef>
#include <cstdlib>
#include <new>

namespace pyvae {

class Scratch {
 public:
  ~Scratch() { std::free(memory_); }

  void* bytes(size_t size) {
    if (size > size_) {
      std::free(memory_);
      size_ = (size + 4095) / 4096 * 4096;
      memory_ = std::aligned_alloc(4096, size_);
      if (memory_ == nullptr) {
        size_ = 0;
        throw std::bad_alloc();
      }
    }
    return memory_;
  }

 private:
  void* memory_ = nullptr;
  size_t size_ = 0;
};

inline thread_local Scratch scratch;  // of whatever kernel runs

}  // namespace pyvae
