// Launchers of the CUDA twins of the block-diagonal Fisher: pointers to device memory, a stream,
// the launch's error. One launch each. Factors are [blocks.count(), blocks.order(),
// blocks.order()].
#pragma once

#include <algorithm>

#include "common/formats.h"
#include "curvature/block_fisher/block_layout.h"

namespace mfac::cuda {

constexpr int64_t kMostBlocks = 0x7fffffff;  // of a grid; what is beyond, its blocks of threads take in turn
constexpr int kBlockTile = 64;           // rows and columns of a matrix that a block of threads has in its registers
constexpr int64_t kSharedOrder = 1024;   // entries of G_b v that fit into shared memory
constexpr int64_t kDiagonalSlots = 384;  // blocks of threads that need scratch, about three for every multiprocessor

// Fisher blocks cut into tiles of columns.
inline int64_t column_tiles(const Blocks& blocks) {
  return blocks.count() * ((blocks.block_size + kBlockTile - 1) / kBlockTile);
}

// Blocks of threads for the diagonal: each keeps a tile of columns of R⁻ᵀG_b where that is more
// than one tile high.
inline int64_t diagonal_slots(const Blocks& blocks) {
  return std::min(column_tiles(blocks), blocks.order() <= kBlockTile ? kMostBlocks : kDiagonalSlots);
}

// float64. A dual block's rank is below its number of columns: never more than the result of
// block_ihvp takes.
inline int64_t ihvp_scratch(const Blocks& blocks, int64_t k) {
  return blocks.rank > kSharedOrder && blocks.rank < blocks.block_size ? blocks.count() * k * blocks.rank : 0;
}
inline int64_t diagonal_scratch(const Blocks& blocks) {
  return blocks.order() <= kBlockTile ? 0 : diagonal_slots(blocks) * blocks.order() * kBlockTile;
}

// factors <- R with RᵀR = nλI + G_b G_bᵀ (dual) or λI + G_bᵀ G_b / n (primal), zero elsewhere;
// failed [count] <- the failing pivot of each, or -1
template <typename T>
int block_factor(const T* window, int64_t stride, const Blocks& blocks, double damping, double num_terms,
                 double* factors, int64_t* failed, void* stream);

// out [k, d] <- vectors [k, d] F⁻¹.  scratch: ihvp_scratch(blocks, k)
template <typename T>
int block_ihvp(const T* window, int64_t stride, const Blocks& blocks, const double* factors, const double* vectors,
               int64_t k, double damping, double* out, double* scratch, void* stream);

// out [k, d] <- vectors [k, d] F
template <typename T>
int block_matvec(const T* window, int64_t stride, const Blocks& blocks, const double* vectors, int64_t k,
                 double damping, double num_terms, double* out, void* stream);

// out [d] <- diag(F⁻¹).  scratch: diagonal_scratch(blocks)
template <typename T>
int block_inverse_diagonal(const T* window, int64_t stride, const Blocks& blocks, const double* factors, double damping,
                           double num_terms, double* out, double* scratch, void* stream);

}  // namespace mfac::cuda
