// What sepconv_plan keeps: the checked description of one operation and what its run needs.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "capi/checks.h"
#include "capi/workspace.h"
#include "core/isa.h"
#include "include/sepconv.h"

namespace sepconv::capi {

// "sepconv" and a number for each operation: a plan of another operation, or no plan at all, is told apart.
enum class Operation : uint64_t {
  kSeparableConv2d = 0x736570636f6e7600,
  kSeparableConv2dBackward,
  kRowAverage,
  kRowAverageBackward,
  kRowAverageConv2d,
  kRowAverageConv2dBackward,
};

template <class Description>
struct Planned {
  Operation operation;
  Isa isa;
  int threads;
  unsigned gradients;  // of a backward
  WorkspaceSize size;
  int64_t output[2];  // (height, width) of the forward
  Description description;
};

// Measures call(parallel), and writes the plan of an operation that was checked.
template <class Description, class Call>
sepconv_status write_plan(Checks& checks, Operation operation, const Description& description,
                          unsigned gradients, int threads, const int64_t (&output)[2], sepconv_plan* plan,
                          Call&& call) {
  using Body = Planned<Description>;
  static_assert(std::is_trivially_copyable_v<Body> && sizeof(Body) <= sizeof(plan->internal));
  return guarded(checks, [&] {
    const Isa isa = current_isa();
    // An empty batch runs no kernel.
    const WorkspaceSize size = description.batch == 0 ? WorkspaceSize{} : measure(threads, call);
    const Body body{operation, isa, threads, gradients, size, {output[0], output[1]}, description};
    sepconv_plan written{};
    if (!checks.require(body.size.total(threads, written.workspace_bytes), SEPCONV_OVERFLOW,
                        "the workspace of %d threads must have at most %zu bytes", threads, SIZE_MAX))
      return;
    written.output_height = output[0], written.output_width = output[1];
    std::memcpy(written.internal, &body, sizeof(body));
    *plan = written;
  });
}

inline bool check_threads(Checks& checks, int threads) {
  return checks.between("threads", threads, 1, kMostThreads);
}

// The plan's content, if it is one of `operation` that may run on these resources.
template <class Description>
bool read_plan(Checks& checks, Operation operation, const sepconv_plan* plan,
               const sepconv_resources* resources, Planned<Description>& planned) {
  if (!checks.not_null("plan", plan) || !checks.not_null("resources", resources)) return false;
  std::memcpy(&planned, plan->internal, sizeof(planned));
  if (!checks.require(planned.operation == operation, SEPCONV_PLAN_MISMATCH,
                      "plan must be one that the function of the same name made, got another one"))
    return false;
  Isa isa = Isa::kScalar;
  if (guarded(checks, [&] { isa = current_isa(); }) != SEPCONV_OK) return false;
  if (!checks.require(planned.isa == isa, SEPCONV_PLAN_MISMATCH,
                      "plan must be for the instruction set in use, %s, got %s: plan again", name_of(isa),
                      name_of(planned.isa)))
    return false;
  size_t wanted = 0;
  planned.size.total(planned.threads, wanted);
  return (wanted == 0 || checks.not_null("resources->workspace", resources->workspace)) &&
         checks.require(resources->workspace_bytes >= wanted, SEPCONV_WORKSPACE_TOO_SMALL,
                        "resources->workspace_bytes must be at least %zu, got %zu", wanted,
                        resources->workspace_bytes);
}

// Runs call(parallel) of a plan that was read on what its caller lends.
template <class Description, class Call>
sepconv_status run_plan(Checks& checks, const Planned<Description>& planned,
                        const sepconv_resources& resources, Call&& call) {
  return guarded(checks, [&] { Team(planned.size, planned.threads, resources).run(checks, call); });
}

}  // namespace sepconv::capi
