// out[r] = Σ_j window[r, j]·v[j], float64 accumulation. Four rows share each load of v.
template <typename T, typename V>
void window_dot_rows(const T* window, int64_t stride, int64_t rows, int64_t cols, const V* v, double* out) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) {
    const T* x0 = window + r * stride;
    const T *x1 = x0 + stride, *x2 = x1 + stride, *x3 = x2 + stride;
    f64v s0 = {}, s1 = {}, s2 = {}, s3 = {};
    int64_t j = 0;
    for (; j + kLanes <= cols; j += kLanes) {
      const f64v y = load(v + j);
      s0 += load(x0 + j) * y;
      s1 += load(x1 + j) * y;
      s2 += load(x2 + j) * y;
      s3 += load(x3 + j) * y;
    }
    double t0 = lane_sum(s0), t1 = lane_sum(s1), t2 = lane_sum(s2), t3 = lane_sum(s3);
    for (; j < cols; ++j) {
      const double y = v[j];
      t0 += double(x0[j]) * y;
      t1 += double(x1[j]) * y;
      t2 += double(x2[j]) * y;
      t3 += double(x3[j]) * y;
    }
    out[r] = t0;
    out[r + 1] = t1;
    out[r + 2] = t2;
    out[r + 3] = t3;
  }
  for (; r < rows; ++r) out[r] = dot(window + r * stride, v, cols);
}
