#include "accesses.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <set>
#include <string>
#include <utility>

namespace sepconv::cuda_host {
namespace {

constexpr int kLanes = 32, kBanks = 32, kBankBytes = 4, kSectorBytes = 32;

// What the lanes of a warp access at once.
struct Request {
  uint64_t address[kLanes];
  uint32_t lanes = 0;
};

struct Counter {
  Space space;
  Access access;
  int bytes;
  Position where;
  std::map<std::pair<int, uint64_t>, Request> pending;  // by the warp and its iteration
  int64_t requests = 0, transactions = 0, needed = 0;
};

// Lanes of as many as move 128 bytes take turns; in each turn, a bank gives one word at a time.
void add_wavefronts(const Request& request, Counter& counter) {
  const int at_once = std::clamp(kBanks * kBankBytes / counter.bytes, 1, kLanes);
  for (int first = 0; first < kLanes; first += at_once) {
    std::set<uint64_t> words;
    for (int lane = first; lane < first + at_once; ++lane)
      if (request.lanes >> lane & 1)
        for (uint64_t at = request.address[lane] / kBankBytes;
             at * kBankBytes < request.address[lane] + counter.bytes; ++at)
          words.insert(at);
    if (words.empty()) continue;
    int of_bank[kBanks] = {};
    for (const uint64_t word : words) ++of_bank[word % kBanks];
    counter.transactions += *std::max_element(of_bank, of_bank + kBanks);
    counter.needed += (words.size() + kBanks - 1) / kBanks;
  }
}

void add_sectors(const Request& request, Counter& counter) {
  std::set<uint64_t> sectors, bytes;
  for (int lane = 0; lane < kLanes; ++lane)
    if (request.lanes >> lane & 1)
      for (uint64_t at = request.address[lane]; at < request.address[lane] + counter.bytes; ++at) {
        sectors.insert(at / kSectorBytes);
        bytes.insert(at);
      }
  counter.transactions += sectors.size();
  counter.needed += (bytes.size() + kSectorBytes - 1) / kSectorBytes;
}

class Counts {
 public:
  Counts() : path_(std::getenv("SEPCONV_CUDA_HOST_COUNTS")) {}
  ~Counts() {
    if (!path_) return;
    std::FILE* file = std::fopen(path_, "w");
    if (!file) {
      std::fprintf(stderr, "cuda_host: SEPCONV_CUDA_HOST_COUNTS: %s cannot be written\n", path_);
      return;
    }
    std::fprintf(file, "kernel,file,line,space,access,bytes,requests,transactions,needed\n");
    for (const auto& [key, counter] : counters_)
      std::fprintf(file, "%s,%s,%u,%s,%s,%d,%lld,%lld,%lld\n", key.first.c_str(), counter.where.file_name(),
                   counter.where.line(), counter.space == Space::kShared ? "shared" : "global",
                   counter.access == Access::kLoad ? "load" : "store", counter.bytes,
                   static_cast<long long>(counter.requests), static_cast<long long>(counter.transactions),
                   static_cast<long long>(counter.needed));
    if (std::fclose(file) != 0) std::fprintf(stderr, "cuda_host: %s is not whole\n", path_);
  }

  bool wanted() const { return path_ != nullptr; }

  Counter& of(const Instruction& instruction, Space space, Access access, int bytes, const Position& where) {
    const auto found = counters_.find({instruction.kernel, instruction.number});
    if (found != counters_.end()) return found->second;
    return counters_
        .emplace(std::pair(std::string(instruction.kernel), instruction.number),
                 Counter{space, access, bytes, where, {}})
        .first->second;
  }

  void end_block() {
    for (auto& [key, counter] : counters_) {
      for (const auto& [at, request] : counter.pending) {
        ++counter.requests;
        counter.space == Space::kShared ? add_wavefronts(request, counter) : add_sectors(request, counter);
      }
      counter.pending.clear();
    }
  }

 private:
  const char* path_;
  std::map<std::pair<std::string, int>, Counter> counters_;
};
Counts counts;

}  // namespace

void count_access(const Instruction& instruction, Space space, Access access, uint64_t address, int bytes,
                  const Position& where) {
  if (!counts.wanted()) return;
  Counter& counter = counts.of(instruction, space, access, bytes, where);
  const uint3 t = here.thread;
  const int thread = t.x + here.block_size.x * (t.y + here.block_size.y * t.z);
  Request& request = counter.pending[{thread / kLanes, instruction.iteration}];
  if (request.lanes >> here.lane & 1) fail("an access twice in one iteration of its loops", where);
  request.address[here.lane] = address;
  request.lanes |= 1u << here.lane;
}

void count_block() {
  if (counts.wanted()) counts.end_block();
}

}  // namespace sepconv::cuda_host
