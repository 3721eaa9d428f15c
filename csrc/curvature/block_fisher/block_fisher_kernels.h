// The CPU kernels of the block-diagonal Fisher: each does one block.
#pragma once

#include "cpu/instances.h"

namespace mfac {

constexpr int64_t kBlockTileColumns = 512;  // of a dual block, packed at a time

// Form of one block's factor: kDual factors nλI + G_b G_bᵀ, kPrimal factors λI + G_bᵀ G_b / n.
enum class BlockForm { kDual, kPrimal };

// One diagonal block of the Fisher. `factor` is its upper Cholesky factor, of order rows (dual) or
// cols (primal); how much scratch each kernel needs stands above it.
template <typename T>
struct Block {
  const T* window;  // [rows, cols], the block's columns of the window
  int64_t stride, rows, cols;
  double damping, num_terms;
  BlockForm form;
  double* factor;
  int64_t factor_stride;
  double* scratch;
};

template <typename T>
struct BlockKernels {
  int64_t panel_rows;                        // that panels and sums are made of
  int64_t (*factor)(const Block<T>& block);  // -1, or the index of the failing pivot
  void (*ihvp)(const Block<T>& block, const double* v, double* out);
  void (*matvec)(const Block<T>& block, const double* v, double* out);
  void (*inverse_diagonal)(const Block<T>& block, double* out);
};

using BlockFisherRoom = ForVectors<BlockKernels>;

}  // namespace mfac
