// Asks for the next tile of a window, a few rows at a time, while this one is computed with:
// packing a tile reads it at the speed of one core's memory, which would otherwise add to the time
// of the arithmetic.
#pragma once

#include <cstdint>

namespace mfac {

class TilePrefetch {
 public:
  // A tile [rows, bytes], rows `stride` bytes apart, to be asked for in `steps` about equal parts.
  TilePrefetch(const void* tile, int64_t stride, int64_t rows, int64_t bytes, int64_t steps)
      : row_(static_cast<const char*>(tile)), stride_(stride), rows_(bytes > 0 ? rows : 0), bytes_(bytes) {
    per_step_ = steps > 0 ? (rows + steps - 1) / steps : rows;
  }

  void step() {
    constexpr int64_t kLine = 64;
    for (int64_t i = 0; i < per_step_ && rows_ > 0; ++i, --rows_, row_ += stride_)
      for (int64_t offset = 0; offset < bytes_ + kLine; offset += kLine)  // rows may begin within a line
        __builtin_prefetch(row_ + offset, 0, 2);
  }

 private:
  const char* row_;
  int64_t stride_, rows_, bytes_, per_step_;
};

}  // namespace mfac
