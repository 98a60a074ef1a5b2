// Closes what begin-inl.h opened.
}  // namespace
}  // namespace sepconv

#ifdef SEPCONV_TARGET
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
