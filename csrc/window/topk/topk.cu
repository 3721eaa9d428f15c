// Launchers of topk_dot, topk_combine_ and topk_push_.
#include "cuda/output.cuh"
#include "window/topk/topk.cuh"
#include "window/topk/topk_push.cuh"

namespace mfac::cuda {
namespace {

constexpr int kBoundaryThreads = 256;

// Rows that gather from one block of columns: several a warp, so that what lies in L1 is used
// again, where there are blocks enough to fill a GPU.
int64_t dot_rows(const TopKLayout& layout, int64_t vector_groups) {
  constexpr int64_t kBlocks = 4096, kMostRows = 8;
  const int64_t eights = ceil_div(layout.rank, kTopKDotWarps) * layout.blocks * vector_groups;
  return kTopKDotWarps * std::clamp<int64_t>(eights / kBlocks, 1, kMostRows);
}

template <typename T, typename V, int vectors>
int launch_dot(const T* values, const uint16_t* offsets, const TopKLayout& layout, const V* v, int64_t vector_stride,
               int64_t k, double* partial, void* stream) {
  const int64_t vector_groups = ceil_div(k, vectors), rows = dot_rows(layout, vector_groups);
  return MFAC_LAUNCH((topk_dot_kernel<T, V, vectors>),
                     dim3(unsigned(ceil_div(layout.rank, rows) * vector_groups * layout.blocks)),
                     dim3(kTopKDotWarps * kWarp), stream, values, offsets, layout, v, vector_stride, k, rows, partial);
}

template <typename V, int width>
int launch_size(const V* error, const V* gradient, const TopKShape& shape, double largest, double* squares,
                void* stream) {
  return MFAC_LAUNCH((topk_size_kernel<V, width>), dim3(unsigned(shape.size_chunks())), dim3(kSizeThreads), stream,
                     error, gradient, shape.layout.dim, shape.size_chunk(), largest, squares);
}

// Finds the boundaries in `scratch` where there are none.
int find_boundaries(const uint16_t* offsets, const TopKLayout& layout, uint16_t* scratch, const uint16_t*& boundaries,
                    void* stream) {
  if (boundaries != nullptr || layout.tiles() == 1 || layout.blocks == 0 || layout.rank == 0) return 0;
  boundaries = scratch;
  return MFAC_LAUNCH(topk_boundaries_kernel<kBoundaryThreads>,
                     dim3(unsigned(ceil_div(layout.rank, kBoundaryThreads / kWarp) * layout.blocks)),
                     dim3(kBoundaryThreads), stream, offsets, layout, scratch);
}

// Over some blocks of columns, from `first_block` on.
template <typename T, typename Output>
int launch_combine(const T* values, const uint16_t* offsets, const TopKLayout& layout, int64_t first_block,
                   int64_t blocks, const uint16_t* boundaries, const double* coefficients, int64_t k, int64_t newest,
                   const Output& output, void* stream) {
  if (blocks == 0) return 0;
  return MFAC_LAUNCH((topk_combine_kernel<T, Output>), dim3(unsigned(blocks * layout.tiles() * k)),
                     dim3(kTopKCombineWarps * kWarp), stream, values, offsets, layout, first_block, boundaries,
                     coefficients, k, newest, output);
}

}  // namespace

template <typename T, typename V>
int topk_dot(const T* values, const uint16_t* offsets, const TopKShape& shape, const V* vectors, int64_t vector_stride,
             int64_t k, double* out, double* scratch, void* stream) {
  const TopKLayout& layout = shape.layout;
  if (layout.rank == 0 || k == 0) return 0;
  if (layout.blocks > 0) {
    const int error = k == 1 ? launch_dot<T, V, 1>(values, offsets, layout, vectors, vector_stride, k, scratch, stream)
                             : launch_dot<T, V, kMostTopKVectors>(values, offsets, layout, vectors, vector_stride, k,
                                                                  scratch, stream);
    if (error != 0) return error;
  }
  return sum_parts(scratch, layout.blocks, k * layout.rank, nullptr, out, stream);
}

template <typename T, typename V>
int topk_combine(const T* values, const uint16_t* offsets, const TopKShape& shape, const double* coefficients,
                 int64_t k, double alpha, double beta, V* out, int64_t out_stride, const uint16_t* boundaries,
                 uint16_t* scratch, void* stream) {
  if (k == 0) return 0;
  const int error = find_boundaries(offsets, shape.layout, scratch, boundaries, stream);
  if (error != 0) return error;
  return launch_combine(values, offsets, shape.layout, 0, shape.layout.blocks, boundaries, coefficients, k, -1,
                        Combination<V>{out, out_stride, alpha, beta}, stream);
}

template <typename T, typename V>
int topk_descend(const T* values, const uint16_t* offsets, const TopKShape& shape, const double* coefficients,
                 const DescentPieces<V>& descent, int64_t newest, const uint16_t* boundaries, uint16_t* scratch,
                 void* stream) {
  const int error = find_boundaries(offsets, shape.layout, scratch, boundaries, stream);
  if (error != 0) return error;
  return for_runs(descent, shape.layout.dim, shape.layout.block_size,
                  [&](int64_t first_block, int64_t blocks, const Descent<V>& output) {
                    return launch_combine(values, offsets, shape.layout, first_block, blocks, boundaries, coefficients,
                                          1, newest, output, stream);
                  });
}

template <typename T, typename V>
int topk_push(T* values, uint16_t* offsets, const TopKShape& shape, V* error, int64_t row, const V* gradient,
              double largest, uint16_t* boundaries, double* products, double* scratch, void* stream) {
  const TopKLayout& layout = shape.layout;
  if (layout.blocks == 0) return sum_parts(scratch, 0, layout.rank, nullptr, products, stream);
  TopKWord* words = reinterpret_cast<TopKWord*>(scratch + shape.push_sums());
  int* refused = reinterpret_cast<int*>(words + layout.blocks * shape.words());
  const bool packed = is_aligned(error, 0) && is_aligned(gradient, 0);
  int failure = packed ? launch_size<V, kPacket<V>>(error, gradient, shape, largest, scratch, stream)
                       : launch_size<V, 1>(error, gradient, shape, largest, scratch, stream);
  if (failure != 0) return failure;
  failure = MFAC_LAUNCH((topk_select_kernel<T, V>), dim3(unsigned(layout.blocks)), dim3(kSelectThreads), stream, values,
                        offsets, layout, row, scratch, shape.size_chunks(), gradient, error, boundaries, words,
                        shape.words(), refused);
  if (failure != 0) return failure;
  const int64_t rows = dot_rows(layout, 1);
  failure = MFAC_LAUNCH((topk_products_kernel<T>), dim3(unsigned(ceil_div(layout.rank, rows) * layout.blocks)),
                        dim3(kTopKDotWarps * kWarp), stream, values, offsets, layout, row, words, shape.words(), rows,
                        refused, scratch);
  if (failure != 0) return failure;
  return sum_parts(scratch, layout.blocks, layout.rank, refused, products, stream);
}

#define MFAC_INSTANCE(T, V)                                                                                            \
  template int topk_dot<T, V>(const T*, const uint16_t*, const TopKShape&, const V*, int64_t, int64_t, double*,        \
                              double*, void*);                                                                         \
  template int topk_combine<T, V>(const T*, const uint16_t*, const TopKShape&, const double*, int64_t, double, double, \
                                  V*, int64_t, const uint16_t*, uint16_t*, void*);                                     \
  template int topk_descend<T, V>(const T*, const uint16_t*, const TopKShape&, const double*, const DescentPieces<V>&, \
                                  int64_t, const uint16_t*, uint16_t*, void*);                                         \
  template int topk_push<T, V>(T*, uint16_t*, const TopKShape&, V*, int64_t, const V*, double, uint16_t*, double*,     \
                               double*, void*);
MFAC_FOR_FLOAT_WINDOWS_AND_VECTORS(MFAC_INSTANCE)
#undef MFAC_INSTANCE

}  // namespace mfac::cuda
