// The block-diagonal Fisher: one task a block, start to end in one thread's cache.
#include "curvature/block_fisher/block_fisher_checks.h"

namespace mfac {
namespace {

// Doubles that factoring a block may use: its matrix and, packed, a tile of a dual block or all of
// a primal one.
int64_t factor_scratch(const Blocks& blocks) {
  const int64_t panel = kernels<BlockKernels<double>>().panel_rows, order = blocks.order();
  const int64_t size = ceil_div(order, panel) * panel;
  return size * (size + std::max(kBlockTileColumns, blocks.rank));
}

// Doubles that its diagonal may use: a panel of columns.
int64_t diagonal_scratch(const Blocks& blocks) { return blocks.order() * kernels<BlockKernels<double>>().panel_rows; }

// Calls f(block number, Block) for every block on all threads; each thread has scratch of `scratch`
// doubles.
template <typename T, typename F>
void for_each_block(const Tensor& window, const Blocks& blocks, double* factors, double damping, double num_terms,
                    int64_t scratch, int64_t work, const F& f) {
  const T* data = window.const_data_ptr<T>();
  parallel_tasks(blocks.count(), work, [&](int64_t begin, int64_t end) {
    Buffer<double> buffer(scratch);
    for (int64_t b = begin; b < end; ++b) {
      double* factor = factors == nullptr ? nullptr : factors + b * blocks.order() * blocks.order();
      f(b, Block<T>{data + blocks.begin(b), window.stride(0), blocks.rank, blocks.cols(b), damping, num_terms,
                    blocks.is_dual(b) ? BlockForm::kDual : BlockForm::kPrimal, factor, blocks.order(), buffer.data()});
    }
  });
}

// The factors' elements; ops that share a `Block` with block_factor only read the factors.
double* factors_to_read(const char* op, const Tensor& factors, const Blocks& blocks) {
  check_factors(op, factors, blocks);
  return const_cast<double*>(factors.const_data_ptr<double>());
}

std::tuple<Tensor, Tensor> block_factor_cpu(const Tensor& window, int64_t block_size, double damping,
                                            double num_terms) {
  const Blocks blocks = check_blocks("block_factor", window, block_size);
  const int64_t count = blocks.count(), order = blocks.order();
  Tensor factors = empty_f64(window, {count, order, order});
  Tensor info = torch::stable::new_empty(window, {count}, ScalarType::Long);
  double* factor = factors.mutable_data_ptr<double>();
  int64_t* failed = info.mutable_data_ptr<int64_t>();
  dispatch_float(window, [&](auto* type) {
    using T = element_t<decltype(type)>;
    for_each_block<T>(window, blocks, factor, damping, num_terms, factor_scratch(blocks),
                      blocks.rank * blocks.block_size * order, [&](int64_t b, const Block<T>& block) {
                        if (blocks.order(b) < order) std::fill(block.factor, block.factor + order * order, 0.0);
                        failed[b] = kernels<BlockKernels<T>>().factor(block);
                      });
  });
  return {factors, info};
}

// out [k, d] <- kernel(block, vector) for every block and every one of the vectors [k, d]; `kernel`
// is that member of BlockKernels.
template <typename Kernel>
Tensor map_vectors(const char* op, const Tensor& window, double* factors, const Tensor& vectors, const Blocks& blocks,
                   double damping, double num_terms, const Kernel& kernel) {
  check_vectors(op, vectors, blocks);
  const int64_t k = vectors.size(0), d = blocks.dim;
  Tensor out = empty_f64(vectors, {k, d});
  const double* v = vectors.const_data_ptr<double>();
  double* x = out.mutable_data_ptr<double>();
  dispatch_float(window, [&](auto* type) {
    using T = element_t<decltype(type)>;
    for_each_block<T>(window, blocks, factors, damping, num_terms, blocks.rank, k * blocks.rank * blocks.block_size,
                      [&](int64_t b, const Block<T>& block) {
                        for (int64_t i = 0; i < k; ++i)
                          kernel(kernels<BlockKernels<T>>())(block, v + i * d + blocks.begin(b),
                                                             x + i * d + blocks.begin(b));
                      });
  });
  return out;
}

Tensor block_ihvp_cpu(const Tensor& window, const Tensor& factors, const Tensor& vectors, int64_t block_size,
                      double damping, double num_terms) {
  const Blocks blocks = check_blocks("block_ihvp", window, block_size);
  double* factor = factors_to_read("block_ihvp", factors, blocks);
  return map_vectors("block_ihvp", window, factor, vectors, blocks, damping, num_terms,
                     [](const auto& table) { return table.ihvp; });
}

Tensor block_matvec_cpu(const Tensor& window, const Tensor& vectors, int64_t block_size, double damping,
                        double num_terms) {
  const Blocks blocks = check_blocks("block_matvec", window, block_size);
  return map_vectors("block_matvec", window, nullptr, vectors, blocks, damping, num_terms,
                     [](const auto& table) { return table.matvec; });
}

Tensor block_inverse_diagonal_cpu(const Tensor& window, const Tensor& factors, int64_t block_size, double damping,
                                  double num_terms) {
  const Blocks blocks = check_blocks("block_inverse_diagonal", window, block_size);
  double* factor = factors_to_read("block_inverse_diagonal", factors, blocks);
  Tensor out = empty_f64(window, {blocks.dim});
  double* x = out.mutable_data_ptr<double>();
  const int64_t work = blocks.order() * blocks.order() * blocks.block_size;
  dispatch_float(window, [&](auto* type) {
    using T = element_t<decltype(type)>;
    for_each_block<T>(window, blocks, factor, damping, num_terms, diagonal_scratch(blocks), work,
                      [&](int64_t b, const Block<T>& block) {
                        kernels<BlockKernels<T>>().inverse_diagonal(block, x + blocks.begin(b));
                      });
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mfac, CPU, m) {
  m.impl("block_factor", TORCH_BOX(&block_factor_cpu));
  m.impl("block_ihvp", TORCH_BOX(&block_ihvp_cpu));
  m.impl("block_matvec", TORCH_BOX(&block_matvec_cpu));
  m.impl("block_inverse_diagonal", TORCH_BOX(&block_inverse_diagonal_cpu));
}

}  // namespace mfac
