// sigmoid and tanh on vectors, to 2 ulp or so, for every input: NaN stays NaN, infinities saturate. Both rest on
// e^x = 2^n (1 + p) with p = 2^f - 1, |f| <= 1/2, by a polynomial whose error is below a tenth of an ulp.
// Included once per instruction set inside FASTRNN_NS.

template <class C>
struct ExpTraits;
template <>
struct ExpTraits<float> {
  static constexpr float log2e = 1.44269502f, log2e_lo = 1.92596299e-8f;
  static constexpr float magic =
      12583039.f;  // 1.5 * 2^23 + 127: added, it leaves n + 127, an exponent, in the low bits
  static constexpr int mantissa = 23;
  static constexpr float low = -88.f;      // e^low comes out as 0
  static constexpr float tanh_one = 10.f;  // tanh rounds to 1 from here on
  // (2^f - 1) / f at Chebyshev nodes: one degree less than the Taylor polynomial needs.
#ifdef FASTRNN_BF16  // off by 7e-6 at most, 1/280 of half an ulp of what gates are rounded to
  static constexpr int degree = 4;
  static constexpr float term(int i) {
    constexpr float terms[] = {0.6931367339f, 0.2402253010f, 5.583828295e-2f, 9.656710289e-3f};
    return terms[i];
  }
#else
  static constexpr int degree = 6;
  static constexpr float term(int i) {
    constexpr float terms[] = {0.6931471880f,   0.2402265092f,   5.550357104e-2f,
                               9.618056670e-3f, 1.339086735e-3f, 1.546144746e-4f};
    return terms[i];
  }
#endif
};
template <>
struct ExpTraits<double> {
  static constexpr double log2e = 1.4426950408889634, log2e_lo = 2.0355273740931033e-17;
  static constexpr double magic = 6755399441056767.0;  // 1.5 * 2^52 + 1023
  static constexpr int mantissa = 52;
  static constexpr double low = -709.0;
  static constexpr double tanh_one = 20.0;
  static constexpr int degree = 13;
  static constexpr double term(int i) {  // ln(2)^(i + 1) / (i + 1)!
    return i < 0 ? 1.0 : term(i - 1) * 0.6931471805599453 / (i + 1);
  }
};

// term(I) + f * (term(I + 1) + ...)
template <class C, int I>
FASTRNN_INLINE Vec<C> exp_terms(Vec<C> f) {
  using E = ExpTraits<C>;
  if constexpr (I == E::degree - 1) {
    return splat<C>(E::term(I));
  } else {
    return fma(exp_terms<C, I + 1>(f), f, splat<C>(E::term(I)));
  }
}

// e^x = scale * (1 + p). x lies in [low, 0] or is NaN (p is NaN then).
template <class C>
FASTRNN_INLINE void split_exp(Vec<C> x, Vec<C>& scale, Vec<C>& p) {
  using E = ExpTraits<C>;
  const Vec<C> shifted = fma(x, splat<C>(E::log2e), splat<C>(E::magic));
  const Vec<C> n = shifted - E::magic;
  const Vec<C> f = fma(x, splat<C>(E::log2e_lo), fma(x, splat<C>(E::log2e), -n));
  p = f * exp_terms<C, 0>(f);
  scale = (Vec<C>)((Bits<C>)shifted << E::mantissa);
}

// e / (1 + e) with e = exp(-|x|) <= 1 is the smaller of sigmoid(x) and sigmoid(-x); the larger is 1 minus that, which
// rounds once where 1 / (1 + e) would round three times.
template <class C>
FASTRNN_INLINE Vec<C> sigmoid(Vec<C> x) {
  using E = ExpTraits<C>;
  const Vec<C> minus = (Vec<C>)((Bits<C>)x | (Bits<C>)splat<C>(C(-0.0)));
  Vec<C> scale, p;
  split_exp<C>(at_least(minus, E::low), scale, p);
  const Vec<C> e = fma(scale, p, scale), q = quotient(e, C(1) + e);
  return x > C(0) ? C(1) - q : q;
}

// tanh|x| = -m / (2 + m) with m = e - 1, e = exp(-2|x|), keeps its relative accuracy down to the smallest x; farther
// out 1 - 2 e / (1 + e) rounds less. The denominators are the same.
template <class C>
FASTRNN_INLINE Vec<C> tanh(Vec<C> x) {
  using E = ExpTraits<C>;
  const Bits<C> sign = (Bits<C>)x & (Bits<C>)splat<C>(C(-0.0));
  const Vec<C> a = (Vec<C>)((Bits<C>)x ^ sign);
  Vec<C> scale, p;
  split_exp<C>(at_least(C(-2) * a, C(-2) * E::tanh_one), scale, p);
  const Vec<C> m = fma(scale, p, scale - C(1)), e = fma(scale, p, scale);
  const auto far = a > C(0.6);
  const Vec<C> q = quotient(far ? C(-2) * e : -m, C(1) + e);
  const Vec<C> t = far ? C(1) + q : q;
  return (Vec<C>)((Bits<C>)t ^ sign);
}
