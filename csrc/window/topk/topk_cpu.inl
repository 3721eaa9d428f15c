// One row's entries inside one block of columns, against that block of a dense vector.

// Σ_p values[p]·v[indices[p]]
template <typename T, typename V>
double topk_dot_entries(const T* values, const uint16_t* indices, int64_t count, const V* v) {
  double s0 = 0, s1 = 0;
  int64_t p = 0;
  for (; p + 2 <= count; p += 2) {
    s0 += widen(values[p]) * double(v[indices[p]]);
    s1 += widen(values[p + 1]) * double(v[indices[p + 1]]);
  }
  if (p < count) s0 += widen(values[p]) * double(v[indices[p]]);
  return s0 + s1;
}

// sums[indices[p]] += c·values[p]
template <typename T>
void topk_add_entries(double c, const T* values, const uint16_t* indices, int64_t count, double* sums) {
  for (int64_t p = 0; p < count; ++p) sums[indices[p]] += c * widen(values[p]);
}

template <typename T, typename V>
constexpr void fill(TopKKernels<T, V>& kernels) {
  kernels = {topk_dot_entries<T, V>, topk_add_entries<T>};
}
