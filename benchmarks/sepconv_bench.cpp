// Times libsepconv, through its C API, on the layers of shape files (shapes/*.txt; layer_shapes.py says what
// is in them): frozen weights, batch norms folded into them, one image.
//   sepconv_bench [--threads N] [--dtype NAME] [--layout nhwc|nchw] [--rounds N] FILE...
//   sepconv_bench --workspace [...] FILE...     what each layer needs of memory, instead
//   sepconv_bench --runs N [...] FILE...        untimed runs, for tools that count instructions, and the
//                                               multiply-adds of one
// All layers and the probe take turns, round by round, so that a change of the clock meets all of them; a
// layer's time is the median of its rounds. The share is that of the probe's rate in this run (probe.cpp).
#include <dlfcn.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "sepconv.h"

namespace {

using Clock = std::chrono::steady_clock;

constexpr const char* kDTypes[] = {"float32", "float64", "bfloat16", "float16"};
constexpr size_t kBytes[] = {4, 8, 2, 2};

void must(sepconv_status status) {
  if (status != SEPCONV_OK) throw std::runtime_error(sepconv_last_error());
}

// --- Command line ----------------------------------------------------------------------------------------

struct Options {
  int threads = 1, rounds = 15;
  sepconv_dtype dtype = SEPCONV_FLOAT32;
  sepconv_layout layout = SEPCONV_NHWC;
  bool workspace = false;
  int runs = 0;  // untimed
  std::vector<std::string> files;
};

int positive(const std::string& name, const std::string& text) {
  size_t read = 0;
  int value = 0;
  try {
    value = std::stoi(text, &read);
  } catch (const std::exception&) {
  }
  if (value < 1 || read != text.size())
    throw std::runtime_error(name + " must be a positive number, got '" + text + "'");
  return value;
}

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    const auto value = [&] {
      if (i + 1 == argc) throw std::runtime_error(name + " must have a value");
      return std::string(argv[++i]);
    };
    if (name == "--workspace") {
      options.workspace = true;
    } else if (name == "--runs") {
      options.runs = positive(name, value());
    } else if (name == "--threads") {
      options.threads = positive(name, value());
    } else if (name == "--rounds") {
      options.rounds = positive(name, value());
    } else if (name == "--layout") {
      const std::string layout = value();
      if (layout != "nhwc" && layout != "nchw")
        throw std::runtime_error("--layout must be nhwc or nchw, got '" + layout + "'");
      options.layout = layout == "nhwc" ? SEPCONV_NHWC : SEPCONV_NCHW;
    } else if (name == "--dtype") {
      const std::string dtype = value();
      const auto found = std::find(std::begin(kDTypes), std::end(kDTypes), dtype);
      if (found == std::end(kDTypes))
        throw std::runtime_error("--dtype must be float32, float64, bfloat16 or float16, got '" + dtype +
                                 "'");
      options.dtype = static_cast<sepconv_dtype>(found - std::begin(kDTypes));
    } else if (name.rfind("--", 0) == 0) {
      throw std::runtime_error("there is no option " + name);
    } else {
      options.files.push_back(name);
    }
  }
  if (options.files.empty())
    throw std::runtime_error("a shape file must be named, as in shapes/xception.txt");
  return options;
}

// --- Shape files -----------------------------------------------------------------------------------------

struct Layer {
  std::string name;
  int64_t count = 1;
  sepconv_separable_conv2d description;
};

// "none", "bn", "relu", "bn+relu6": a folded batch norm leaves a shift.
sepconv_stage parse_stage(const std::string& text) {
  sepconv_stage stage{};
  std::string activation = text;
  if (text == "bn" || text.rfind("bn+", 0) == 0) {
    stage.has_shift = 1;
    activation = text == "bn" ? "none" : text.substr(3);
  }
  if (activation == "relu") {
    stage.activation = SEPCONV_RELU;
  } else if (activation == "relu6") {
    stage.activation = SEPCONV_RELU6;
  } else if (activation != "none") {
    throw std::runtime_error("a stage is none, bn, relu, relu6, or as bn+relu, got '" + text + "'");
  }
  return stage;
}

void parse_stages(const std::string& text, sepconv_separable_conv2d& layer) {
  std::istringstream words(text);
  std::string prologue, bar, middle, second_bar, epilogue, more;
  words >> prologue >> bar >> middle >> second_bar >> epilogue;
  if (!words || bar != "|" || second_bar != "|" || words >> more)
    throw std::runtime_error("stages are three, as in 'relu | none | bn', got '" + text + "'");
  layer.prologue = parse_stage(prologue), layer.middle = parse_stage(middle),
  layer.epilogue = parse_stage(epilogue);
  if (layer.prologue.has_shift)
    throw std::runtime_error("no batch norm folds into what stands before it, got '" + text + "'");
}

Layer parse_layer(const std::string& line, sepconv_separable_conv2d layer) {
  Layer result;
  std::istringstream words(line);
  int64_t kernel = 0, stride = 0, padding = 0, dilation = 0;
  words >> result.name >> layer.in_channels >> layer.out_channels >> layer.height >> layer.width >> kernel >>
      stride >> padding >> dilation;
  if (!words)
    throw std::runtime_error(
        "expected a name and integers (in_channels out_channels height width kernel stride padding dilation "
        "[count [multiplier]]), got '" +
        line + "'");
  layer.window = {{kernel, kernel}, {stride, stride}, {padding, padding}, {dilation, dilation}};
  words >> std::ws;
  if (!words.eof() && words >> result.count) words >> std::ws;
  if (!words.eof() && words >> layer.depth_multiplier) words >> std::ws;
  if (!words.eof() || result.count < 1)
    throw std::runtime_error("expected at most [count [multiplier]] after the dilation, got '" + line + "'");
  sepconv_plan plan;
  must(sepconv_plan_separable_conv2d(&layer, 1, &plan));  // before any size of it is believed
  result.description = layer;
  return result;
}

std::vector<Layer> load(const std::string& path, const Options& options) {
  std::ifstream file(path);
  if (!file) throw std::runtime_error(path + " cannot be read");
  std::vector<Layer> layers;
  sepconv_separable_conv2d plain;
  sepconv_init_separable_conv2d(&plain);
  plain.batch = 1, plain.dtype = options.dtype, plain.layout = options.layout;
  std::string line;
  for (int number = 1; std::getline(file, line); ++number) try {
      line = line.substr(0, line.find('#'));
      if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
      if (const std::string key = "stages:"; line.rfind(key, 0) == 0)
        parse_stages(line.substr(key.size()), plain);
      else
        layers.push_back(parse_layer(line, plain));
    } catch (const std::runtime_error& error) {
      throw std::runtime_error(path + ", line " + std::to_string(number) + ": " + error.what());
    }
  if (layers.empty()) throw std::runtime_error(path + ": no layers");
  return layers;
}

// --- Work ------------------------------------------------------------------------------------------------

// Bytes that read as small numbers in every dtype, at an address for vectors. The memory is written once.
class Values {
 public:
  Values(int64_t count, sepconv_dtype dtype) {
    const auto total = static_cast<size_t>(count);
    data_.reset(std::aligned_alloc(64, (total * kBytes[dtype] + 64) / 64 * 64));
    if (data_ == nullptr) throw std::bad_alloc();
    std::minstd_rand random(1);
    for (size_t i = 0; i < total; ++i) {
      const float value = static_cast<float>(static_cast<int>(random() % 17) - 8) / 8;
      uint32_t bits;
      std::memcpy(&bits, &value, sizeof(bits));
      const auto half = static_cast<uint16_t>(
          value == 0 ? 0 : (bits >> 16 & 0x8000) | ((bits >> 13 & 0x3ffff) - (112u << 10)));
      switch (dtype) {
        case SEPCONV_FLOAT32:
          static_cast<float*>(data_.get())[i] = value;
          break;
        case SEPCONV_FLOAT64:
          static_cast<double*>(data_.get())[i] = value;
          break;
        case SEPCONV_BFLOAT16:
          static_cast<uint16_t*>(data_.get())[i] = static_cast<uint16_t>(bits >> 16);
          break;
        default:
          static_cast<uint16_t*>(data_.get())[i] = half;
      }
    }
  }
  void* get() const { return data_.get(); }

 private:
  struct Free {
    void operator()(void* data) const { std::free(data); }
  };
  std::unique_ptr<void, Free> data_;
};

// A layer that can be run: its plan, tensors, packed weights and workspace.
class Work {
 public:
  Work(const Layer& layer, int threads)
      : layer_(layer.description),
        input_(layer_.batch * layer_.in_channels * layer_.height * layer_.width, layer_.dtype),
        vectors_(std::max(middle(), layer_.out_channels), layer_.dtype) {
    const Values depthwise(middle() * layer_.window.kernel[0] * layer_.window.kernel[1], layer_.dtype),
        pointwise(middle() * layer_.out_channels, layer_.dtype);
    size_t bytes = 0;
    must(sepconv_packed_bytes_of_separable_conv2d(&layer_, &bytes));
    packed_ = std::make_unique<Values>(static_cast<int64_t>(bytes / kBytes[layer_.dtype]), layer_.dtype);
    must(sepconv_pack_separable_conv2d(&layer_, depthwise.get(), pointwise.get(), packed_->get(), bytes));
    layer_.has_packed_weights = 1;
    must(sepconv_plan_separable_conv2d(&layer_, threads, &plan_));
    output_ = std::make_unique<Values>(
        layer_.batch * layer_.out_channels * plan_.output_height * plan_.output_width, layer_.dtype);
    workspace_.resize(plan_.workspace_bytes);
    data_.input = input_.get(), data_.output = output_->get();
    data_.packed_weights = packed_->get(), data_.packed_bytes = bytes;
    const auto shift = [&](const sepconv_stage& stage) { return stage.has_shift ? vectors_.get() : nullptr; };
    data_.prologue_shift = shift(layer_.prologue), data_.middle_shift = shift(layer_.middle),
    data_.epilogue_shift = shift(layer_.epilogue);
    resources_ = {workspace_.data(), workspace_.size(), nullptr, nullptr};
  }

  // Of both convolutions, two for each multiply-add.
  double flops() const {
    const int64_t pixels = layer_.batch * plan_.output_height * plan_.output_width,
                  taps = layer_.window.kernel[0] * layer_.window.kernel[1];
    return 2.0 * static_cast<double>(pixels * middle() * (taps + layer_.out_channels));
  }
  void run() const { must(sepconv_run_separable_conv2d(&plan_, &data_, &resources_)); }
  double seconds(int runs) const {
    const auto begin = Clock::now();
    for (int i = 0; i < runs; ++i) run();
    return std::chrono::duration<double>(Clock::now() - begin).count() / runs;
  }

 private:
  int64_t middle() const { return layer_.in_channels * layer_.depth_multiplier; }
  sepconv_separable_conv2d layer_;
  Values input_, vectors_;
  std::unique_ptr<Values> packed_, output_;
  std::vector<char> workspace_;
  sepconv_plan plan_{};
  sepconv_separable_conv2d_data data_{};
  sepconv_resources resources_{};
};

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<int64_t>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

// --- The probe -------------------------------------------------------------------------------------------

// probe.cpp is compiled once for each instruction set, as a library of its own beside this program.
class Probe {
 public:
  explicit Probe(sepconv_dtype dtype) {
    std::string isa = sepconv_cpu_capability();
    const bool tiles = isa == "amx" && dtype == SEPCONV_BFLOAT16;
    if (isa == "amx" || isa == "avx512_bf16") isa = "avx512";
    if (isa == "neon_bf16") isa = "neon";
    name_ = tiles ? "amx_bf16" : isa;
    scale_ = dtype == SEPCONV_FLOAT64 ? 0.5 : 1;
    const auto path =
        std::filesystem::read_symlink("/proc/self/exe").parent_path() / ("libsepconv_probe_" + name_ + ".so");
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library != nullptr)
      measure_ = reinterpret_cast<void (*)(int, double, double*, double*)>(dlsym(library, "fma_gflops"));
  }
  bool there() const { return measure_ != nullptr; }
  const std::string& name() const { return name_; }
  double gflops(int threads) const {
    double best = 0, sustained = 0;
    measure_(threads, 0.01, &best, &sustained);
    return best * scale_;
  }

 private:
  std::string name_;
  double scale_ = 1;
  void (*measure_)(int, double, double*, double*) = nullptr;
};

// --- The tables ------------------------------------------------------------------------------------------

void print_times(const std::vector<Layer>& layers, const Options& options) {
  constexpr double kSample = 0.005;  // seconds: long against the clock, short against a time slice
  const Probe probe(options.dtype);
  std::vector<Work> work;
  std::vector<int> runs;
  for (const Layer& layer : layers) {
    work.emplace_back(layer, options.threads);
    work.back().run();
    runs.push_back(std::max(1, static_cast<int>(kSample / work.back().seconds(1))));
  }
  std::vector<std::vector<double>> seconds(layers.size());
  std::vector<double> rates;
  for (int round = 0; round < options.rounds; ++round) {
    for (size_t i = 0; i < work.size(); ++i) seconds[i].push_back(work[i].seconds(runs[i]));
    if (probe.there()) rates.push_back(probe.gflops(options.threads));
  }
  const double peak = probe.there() ? median(rates) : 0;
  if (probe.there())
    std::printf("probe %s: %.1f GFLOP/s\n", probe.name().c_str(), peak);
  else
    std::printf("there is no probe for %s\n", probe.name().c_str());
  std::printf("%-24s %5s %10s %9s %7s\n", "layer", "count", "ms", "GFLOP/s", "share");
  const auto print = [&](const char* name, int64_t count, double time, double flops) {
    char share[16] = "-";
    if (peak > 0) std::snprintf(share, sizeof(share), "%.0f%%", flops / time / peak * 1e-7);
    std::printf("%-24s %5lld %10.4f %9.1f %7s\n", name, static_cast<long long>(count), time * 1e3,
                flops / time * 1e-9, share);
  };
  double total_time = 0, total_flops = 0;
  int64_t total = 0;
  for (size_t i = 0; i < work.size(); ++i) {
    const double time = median(seconds[i]);
    print(layers[i].name.c_str(), layers[i].count, time, work[i].flops());
    const auto count = static_cast<double>(layers[i].count);
    total_time += count * time, total_flops += count * work[i].flops(), total += layers[i].count;
  }
  print("all", total, total_time, total_flops);
}

void run_untimed(const std::vector<Layer>& layers, const Options& options) {
  std::printf("%-24s %14s\n", "layer", "multiply-adds");
  for (const Layer& layer : layers) {
    const Work work(layer, options.threads);
    for (int i = 0; i < options.runs; ++i) work.run();
    std::printf("%-24s %14.0f\n", layer.name.c_str(), work.flops() / 2);
  }
}

// What a plan's run needs; nothing where this build of the library has no such operation.
std::string bytes_of(sepconv_status status, const sepconv_plan& plan) {
  if (status == SEPCONV_NOT_BUILT) return "-";
  must(status);
  return std::to_string(plan.workspace_bytes);
}

void print_workspace(const std::vector<Layer>& layers, const Options& options) {
  std::printf("%-24s %12s %12s %12s %12s\n", "layer, bytes", "frozen", "plain", "backward", "packed");
  for (const Layer& layer : layers) {
    sepconv_separable_conv2d plain = layer.description, frozen = plain, trained = plain;
    frozen.has_packed_weights = 1;
    trained.prologue.has_shift = trained.middle.has_shift = trained.epilogue.has_shift = 0;
    trained.middle.activation = trained.epilogue.activation = SEPCONV_NO_ACTIVATION;
    sepconv_plan plan;
    const auto forward = [&](const sepconv_separable_conv2d& of) {
      return bytes_of(sepconv_plan_separable_conv2d(&of, options.threads, &plan), plan);
    };
    const auto backward = [&] {
      const unsigned gradients =
          SEPCONV_GRAD_INPUT | SEPCONV_GRAD_DEPTHWISE_WEIGHT | SEPCONV_GRAD_POINTWISE_WEIGHT;
      return bytes_of(sepconv_plan_separable_conv2d_backward(&trained, gradients, options.threads, &plan),
                      plan);
    };
    size_t packed = 0;
    must(sepconv_packed_bytes_of_separable_conv2d(&plain, &packed));
    std::printf("%-24s %12s %12s %12s %12zu\n", layer.name.c_str(), forward(frozen).c_str(),
                forward(plain).c_str(), backward().c_str(), packed);
  }
}

}  // namespace

int main(int argc, char** argv) try {
  const Options options = parse(argc, argv);
  std::printf("sepconv %s, %s, %d threads, %s, %s\n", sepconv_version(), sepconv_cpu_capability(),
              options.threads, kDTypes[options.dtype], options.layout == SEPCONV_NHWC ? "NHWC" : "NCHW");
  for (const std::string& file : options.files) {
    const std::vector<Layer> layers = load(file, options);
    std::printf("\n%s\n", std::filesystem::path(file).stem().c_str());
    options.workspace  ? print_workspace(layers, options)
    : options.runs > 0 ? run_untimed(layers, options)
                       : print_times(layers, options);
  }
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "sepconv_bench: %s\n", error.what());
  return 1;
}
