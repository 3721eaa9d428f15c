// topk_dot, topk_combine_ and topk_push_: windows of sparse rows (topk_layout.h). What a row leaves
// out is carried to the next in `error` [d] (error feedback: Modoranu et al., EFCP, 2023).
//
// A block of columns is a task, with its part of a dense vector, or of float64 sums, in L2. Sums
// over blocks are added in order.
#include <bit>
#include <functional>
#include <limits>

#include "window/topk/topk_checks.h"
#include "window/window_push/storable.h"

namespace mfac {
namespace {

// Kernels trust the offsets.
void check_offsets(const char* op, const Tensor& indices, const TopKLayout& layout) {
  const uint16_t* offsets = elements<uint16_t>(indices);
  for (int64_t r = 0; r < layout.rank; ++r)
    for (int64_t b = 0; b < layout.blocks; ++b) {
      const uint16_t* of_block = offsets + layout.entry(r, b);
      uint16_t largest = 0;
      for (int64_t p = 0; p < layout.kept; ++p) largest = std::max(largest, of_block[p]);
      STD_TORCH_CHECK(largest < layout.cols(b), op,
                      ": Parameter `indices` should be below the columns of its block. Found ", largest, " in row ", r,
                      ".");
    }
}

// out [k, m] <- vectors Gᵀ
template <typename T, typename V>
void products(const T* values, const uint16_t* indices, const TopKLayout& layout, const V* vectors, int64_t stride,
              int64_t k, double* out) {
  const int64_t m = layout.rank, blocks = layout.blocks;
  std::vector<double> partial(blocks * k * m);
  parallel_tasks(blocks, m * layout.kept * k, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b)
      for (int64_t i = 0; i < k; ++i)
        for (int64_t r = 0; r < m; ++r)
          partial[(b * k + i) * m + r] =
              kernels<TopKKernels<T, V>>().dot(values + layout.entry(r, b), indices + layout.entry(r, b), layout.kept,
                                               vectors + i * stride + layout.begin(b));
  });
  for (int64_t i = 0; i < k * m; ++i) {
    double sum = 0;
    for (int64_t b = 0; b < blocks; ++b) sum += partial[b * k * m + i];
    out[i] = sum;
  }
}

// The bits of |x|, which order as |x| does.
uint32_t magnitude_bits(float x) { return std::bit_cast<uint32_t>(x) & 0x7fffffffu; }
uint64_t magnitude_bits(double x) { return std::bit_cast<uint64_t>(x) & 0x7fffffffffffffffu; }

// The count-th largest of the keys: a histogram of their leading 11 bits finds its bin, a selection
// the key in the bin.
template <typename Key>
Key select_key(const std::vector<Key>& keys, int64_t size, int64_t count, std::vector<Key>& bin) {
  constexpr int kShift = 8 * sizeof(Key) - 12;  // the sign bit is 0
  int32_t histogram[2048] = {};
  for (int64_t j = 0; j < size; ++j) ++histogram[keys[j] >> kShift];
  int64_t above = 0, b = 2047;
  while (above + histogram[b] < count) above += histogram[b--];
  bin.clear();
  for (int64_t j = 0; j < size; ++j)
    if (int64_t(keys[j] >> kShift) == b) bin.push_back(keys[j]);
  std::nth_element(bin.begin(), bin.begin() + (count - above - 1), bin.end(), std::greater<Key>());
  return bin[count - above - 1];
}

// Offsets of the `kept` entries largest in magnitude, ascending; the first of equal ones.
template <typename V, typename Key>
void select_largest(const V* v, int64_t cols, int64_t kept, std::vector<Key>& keys, std::vector<Key>& bin,
                    uint16_t* chosen) {
  const int64_t count = std::min(kept, cols);
  for (int64_t j = 0; j < cols; ++j) keys[j] = magnitude_bits(v[j]);
  const Key threshold = select_key(keys, cols, count, bin);
  int64_t equal = count;
  for (int64_t j = 0; j < cols; ++j) equal -= keys[j] > threshold;
  int64_t found = 0;
  for (int64_t j = 0; j < cols && found < count; ++j)
    if (keys[j] > threshold || (keys[j] == threshold && equal-- > 0)) chosen[found++] = uint16_t(j);
  std::fill(chosen + found, chosen + kept, uint16_t(0));
}

template <typename T, typename V>
void push(T* values, uint16_t* indices, V* error, const TopKLayout& layout, int64_t row, const V* gradient,
          uint16_t* boundaries, double* out) {
  std::vector<V> carried(layout.dim), rounded(layout.dim, V(0));
  for (int64_t j = 0; j < layout.dim; ++j) carried[j] = error[j] + gradient[j];
  if (!is_storable<T>(carried.data(), layout.dim)) {
    std::fill(out, out + layout.rank, std::numeric_limits<double>::quiet_NaN());
    return;
  }
  parallel_tasks(layout.blocks, 8 * layout.block_size, [&](int64_t begin, int64_t end) {
    std::vector<decltype(magnitude_bits(V(0)))> keys(layout.block_size), bin;
    std::vector<V> kept_values(layout.kept), kept_rounded(layout.kept);
    for (int64_t b = begin; b < end; ++b) {
      V* v = carried.data() + layout.begin(b);
      uint16_t* chosen = indices + layout.entry(row, b);
      const int64_t cols = layout.cols(b), count = layout.count(b);
      select_largest(v, cols, layout.kept, keys, bin, chosen);
      for (int64_t p = 0; p < layout.kept; ++p) kept_values[p] = p < count ? v[chosen[p]] : V(0);
      kernels<RoundKernels<T, V>>().round(kept_values.data(), layout.kept, values + layout.entry(row, b),
                                          kept_rounded.data());
      for (int64_t p = 0; p < count; ++p) {
        rounded[layout.begin(b) + chosen[p]] = kept_rounded[p];
        v[chosen[p]] -= kept_rounded[p];
      }
      std::copy(v, v + cols, error + layout.begin(b));
      for (int tile = 1; boundaries != nullptr && tile < layout.tiles(); ++tile)
        boundaries[layout.boundary(row, b, tile)] =
            uint16_t(std::lower_bound(chosen, chosen + count, tile * kTopKTileColumns) - chosen);
    }
  });
  products<T, V>(values, indices, layout, rounded.data(), layout.dim, 1, out);
}

Tensor topk_dot_cpu(const Tensor& values, const Tensor& indices, const Tensor& vectors, int64_t block_size) {
  const TopKLayout layout = check_topk_dot(values, indices, vectors, block_size);
  check_offsets("topk_dot", indices, layout);
  const int64_t k = vectors.size(0);
  Tensor out = empty_f64(vectors, {k, layout.rank});
  dispatch_float_window(values, [&](auto* value_type) {
    dispatch_float(vectors, [&](auto* vector_type) {
      using T = element_t<decltype(value_type)>;
      using V = element_t<decltype(vector_type)>;
      products(elements<T>(values), elements<uint16_t>(indices), layout, elements<V>(vectors), vectors.stride(0), k,
               out.mutable_data_ptr<double>());
    });
  });
  return out;
}

template <typename T>
bool is_zero(T x) {
  if constexpr (sizeof(T) == 2) return (x.bits & 0x7fff) == 0;  // but for the sign
  else return x == 0;
}

// Calls f(i, b, sums) for every block of columns and vector: sums[0, cols) = (coefficients of
// vector i)·G there. A whole block of sums is in L2, so that boundaries are of no use.
template <typename T, typename V, typename F>
void for_sums(const Tensor& values, const Tensor& indices, const Tensor& coefficients, const TopKLayout& layout,
              const F& f) {
  const int64_t k = coefficients.size(0), m = layout.rank;
  const double* c = elements<double>(coefficients);
  const T* x = elements<T>(values);
  const uint16_t* offsets = elements<uint16_t>(indices);
  parallel_tasks(layout.blocks, m * layout.kept * k, [&](int64_t begin, int64_t end) {
    std::vector<double> sums(layout.block_size);
    for (int64_t task = begin * k; task < end * k; ++task) {
      const int64_t b = task / k, i = task % k;
      std::fill(sums.begin(), sums.end(), 0.0);
      for (int64_t r = 0; r < m; ++r)
        kernels<TopKKernels<T, V>>().add(c[i * m + r], x + layout.entry(r, b), offsets + layout.entry(r, b),
                                         layout.kept, sums.data());
      f(i, b, sums.data());
    }
  });
}

// out [k, d] <- alpha out + beta coefficients G
void topk_combine_cpu(Tensor out, const Tensor& values, const Tensor& indices, const Tensor& coefficients, double alpha,
                      double beta, int64_t block_size, const std::optional<Tensor>& boundaries) {
  const TopKLayout layout = check_topk_combine(out, values, indices, coefficients, block_size, boundaries);
  check_offsets("topk_combine_", indices, layout);
  dispatch_float_window(values, [&](auto* value_type) {
    dispatch_float(out, [&](auto* out_type) {
      using T = element_t<decltype(value_type)>;
      using V = element_t<decltype(out_type)>;
      V* const first = mutable_elements<V>(out);
      for_sums<T, V>(values, indices, coefficients, layout, [&](int64_t i, int64_t b, const double* sums) {
        V* y = first + i * out.stride(0) + layout.begin(b);
        for (int64_t j = 0; j < layout.cols(b); ++j)
          y[j] = alpha == 0 ? V(beta * sums[j]) : V(alpha * double(y[j]) + beta * sums[j]);
      });
    });
  });
}

void topk_descend_cpu(const std::vector<Tensor>& parameters, std::optional<Tensor> average, const Tensor& values,
                      const Tensor& indices, const Tensor& coefficients, double beta, double momentum, int64_t newest,
                      const std::vector<int64_t>& columns, const std::vector<double>& rates,
                      const std::vector<double>& decays, int64_t dim, int64_t block_size,
                      const std::optional<Tensor>& boundaries) {
  const DescentArguments arguments{parameters, average, coefficients, beta, momentum, columns, rates, decays};
  const TopKLayout layout = check_topk_descend(arguments, values, indices, newest, dim, block_size, boundaries);
  check_offsets("topk_descend_", indices, layout);
  dispatch_float_window(values, [&](auto* value_type) {
    dispatch_float(parameters[0], [&](auto* weight_type) {
      using T = element_t<decltype(value_type)>;
      using V = element_t<decltype(weight_type)>;
      const DescentPieces<V> descent = pieces_of<V>(arguments);
      for_sums<T, V>(values, indices, coefficients, layout, [&](int64_t, int64_t b, const double* sums) {
        const int64_t cols = layout.cols(b);
        std::vector<V> move(cols);
        if (descent.average == nullptr) {
          for (int64_t j = 0; j < cols; ++j) move[j] = V(beta * sums[j]);
        } else {
          V* const v = descent.average + layout.begin(b);
          for (int64_t j = 0; j < cols; ++j)
            move[j] = v[j] = V((momentum == 0 ? 0 : momentum * double(v[j])) + (1 - momentum) * beta * sums[j]);
          for (int64_t p = layout.entry(newest, b), end = p + layout.count(b); p < end; ++p) {
            const int64_t j = elements<uint16_t>(indices)[p];
            if (!is_zero(elements<T>(values)[p])) move[j] = V(beta * sums[j]), v[j] = 0;
          }
        }
        descend(descent.pieces, layout.begin(b), cols, move.data());
      });
    });
  });
}

Tensor topk_push_cpu(Tensor values, Tensor indices, Tensor error, int64_t row, const Tensor& gradient,
                     int64_t block_size, std::optional<Tensor> boundaries) {
  const TopKLayout layout = check_topk_push(values, indices, error, row, gradient, block_size, boundaries);
  check_offsets("topk_push_", indices, layout);
  Tensor products = empty_f64(gradient, {layout.rank});
  dispatch_float_window(values, [&](auto* value_type) {
    dispatch_float(gradient, [&](auto* vector_type) {
      using T = element_t<decltype(value_type)>;
      using V = element_t<decltype(vector_type)>;
      push(mutable_elements<T>(values), mutable_elements<uint16_t>(indices), mutable_elements<V>(error), layout, row,
           elements<V>(gradient), boundaries ? mutable_elements<uint16_t>(*boundaries) : nullptr,
           products.mutable_data_ptr<double>());
    });
  });
  return products;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mfac, CPU, m) {
  m.impl("topk_dot", TORCH_BOX(&topk_dot_cpu));
  m.impl("topk_combine_", TORCH_BOX(&topk_combine_cpu));
  m.impl("topk_descend_", TORCH_BOX(&topk_descend_cpu));
  m.impl("topk_push_", TORCH_BOX(&topk_push_cpu));
}

}  // namespace mfac
