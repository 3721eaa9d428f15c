// Groups side by side, one a lane, and of how many others of its group each score is the higher.
// Nothing is sorted.
template <typename T>
struct ScoreLanes {
  static constexpr int64_t count = 8 * kLanes / sizeof(T);
  typedef T Scores __attribute__((vector_size(8 * MFAC_LANES)));
  using Counts = decltype(Scores() < Scores());  // integers
};

// `fixed_rows`: of the groups that hardware knows, so that all stays in registers; 0 for any other.
template <int fixed_rows, typename T>
MFAC_INLINE void nm_mask_lanes(const T* scores, const int64_t* first, int64_t lanes, const NMGroups& groups,
                               bool* mask) {
  using Lanes = ScoreLanes<T>;
  const int64_t rows = fixed_rows == 0 ? groups.rows : fixed_rows, inner = groups.inner;
  typename Lanes::Scores x[kMostInGroup];
  typename Lanes::Counts higher[kMostInGroup];
  for (int64_t i = 0; i < rows; ++i) {
    T row[Lanes::count];
    for (int64_t l = 0; l < Lanes::count; ++l) row[l] = scores[first[l] + i * inner];
    x[i] = load_bits<typename Lanes::Scores>(row);
    higher[i] = typename Lanes::Counts{};
  }
  for (int64_t i = 1; i < rows; ++i)
    for (int64_t j = 0; j < i; ++j) {
      const auto later_is_higher = (x[i] >= x[j]) | (x[i] != x[i]);  // -1: it is; equal scores, or NaN
      higher[i] -= later_is_higher;
      higher[j] += later_is_higher + 1;
    }
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t l = 0; l < lanes; ++l) mask[first[l] + i * inner] = higher[i][l] >= rows - groups.keep;
}

template <typename T>
void nm_mask_groups(const T* scores, const NMGroups& groups, int64_t begin, int64_t end, bool* mask) {
  constexpr int64_t kLanesOf = ScoreLanes<T>::count;
  int64_t column = begin % groups.inner, group = begin / groups.inner % groups.along;
  int64_t outer = begin / groups.inner / groups.along, first[kLanesOf];
  for (; begin < end; begin += kLanesOf) {
    const int64_t lanes = end - begin < kLanesOf ? end - begin : kLanesOf;
    for (int64_t l = 0; l < lanes; ++l) {
      first[l] = outer * groups.outer_stride + group * groups.group_stride + column;
      if (++column < groups.inner) continue;
      column = 0;
      if (++group < groups.along) continue;
      group = 0;
      ++outer;
    }
    for (int64_t l = lanes; l < kLanesOf; ++l) first[l] = first[0];  // read, not written
    if (groups.rows == 4) nm_mask_lanes<4>(scores, first, lanes, groups, mask);
    else if (groups.rows == 8) nm_mask_lanes<8>(scores, first, lanes, groups, mask);
    else nm_mask_lanes<0>(scores, first, lanes, groups, mask);
  }
}

template <typename T>
constexpr void fill(NMMaskKernels<T>& kernels) {
  kernels = {nm_mask_groups<T>};
}
