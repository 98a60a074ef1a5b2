// A planned call: its workspace lives for as long as it runs, and Python's other threads go on meanwhile.
#pragma once
#include <memory>

#include "arrays.h"

namespace sepconv::edge {

template <class Body>
void run(const Arguments& arguments, const sepconv_plan& plan, Body&& body) {
  const auto workspace = std::make_unique_for_overwrite<char[]>(plan.workspace_bytes);
  sepconv_resources resources{};
  resources.workspace = workspace.get();
  resources.workspace_bytes = plan.workspace_bytes;
  sepconv_status status;
  {
    const py::gil_scoped_release others;
    status = body(resources);
  }
  arguments.must(status);  // on the same thread: the message is the thread's own
}

}  // namespace sepconv::edge
