// Asks for the next tile of a window, a few lines at a time, while this one is computed with: packing a tile reads it
// at the speed of one core's memory, which would otherwise add to the time of the arithmetic.
#pragma once

#include <cstdint>

namespace mfac {

class TilePrefetch {
 public:
  // The lines of a tile [rows, bytes], rows `stride` bytes apart, to be asked for in `steps` about equal parts.
  TilePrefetch(const void* tile, int64_t stride, int64_t rows, int64_t bytes, int64_t steps)
      : row_(static_cast<const char*>(tile)), stride_(stride), rows_(rows), bytes_(bytes) {
    const int64_t lines = rows * ((bytes + kLine - 1) / kLine);
    per_step_ = steps > 0 ? (lines + steps - 1) / steps : lines;
  }

  void step() {
    for (int64_t i = 0; i < per_step_ && rows_ > 0; ++i) {
      __builtin_prefetch(row_ + offset_, 0, 2);
      offset_ += kLine;
      if (offset_ >= bytes_) {
        offset_ = 0;
        row_ += stride_;
        --rows_;
      }
    }
  }

 private:
  static constexpr int64_t kLine = 64;
  const char* row_;
  int64_t stride_, rows_, bytes_, per_step_, offset_ = 0;
};

}  // namespace mfac
