// How threads without a tile of their own help with the tiles of others: small maps have as many tiles as
// threads, and cores of one machine rarely run equally fast.

// The depthwise output of a tile: pixel p, channel c at data[p * ld + c].
template <class T>
struct TileValues {
  PixelTile tile;
  const T* data;
  int64_t ld;
};

// The tile that a thread is at, and those panels of weights that it has yet to go under. Its owner takes them
// from the front, guests from the back.
template <class T>
class OpenTile {
 public:
  // For the owner: before it changes what the values point to it waits for the guests.
  void open(const TileValues<T>& values, int64_t first_panel, int64_t last_panel) {
    values_ = values;
    panels_.open(first_panel, last_panel);
  }
  const TileValues<T>& values() const { return values_; }
  bool take_panel(int64_t& panel) { return panels_.take_first(panel); }
  int64_t panels_left() const { return panels_.left(); }
  void wait_for_guests() const {
    while (guests_.load(std::memory_order_acquire) > 0) std::this_thread::yield();
  }

  // For as long as a guest is there, the values stay.
  class Guest {
   public:
    explicit Guest(OpenTile& host) : host_(host) { host_.guests_.fetch_add(1); }
    ~Guest() { host_.guests_.fetch_sub(1, std::memory_order_release); }
    Guest(const Guest&) = delete;
    Guest& operator=(const Guest&) = delete;
    bool take_panel(int64_t& panel) { return host_.panels_.take_last(panel); }

   private:
    OpenTile& host_;
  };

 private:
  SharedRange panels_;
  std::atomic<int> guests_{0};
  TileValues<T> values_{};
};

// One for each thread of a call.
template <class T>
class OpenTiles {
 public:
  explicit OpenTiles(int workers) : tiles_(static_cast<size_t>(workers)) {}
  OpenTile<T>& of(int worker) { return tiles_[static_cast<size_t>(worker)]; }

  // Calls body(values, panel) for panels that no one has taken, until there are none.
  template <class Body>
  void help(Body&& body) {
    for (;;) {
      OpenTile<T>& fullest =
          *std::max_element(tiles_.begin(), tiles_.end(),
                            [](const auto& a, const auto& b) { return a.panels_left() < b.panels_left(); });
      if (fullest.panels_left() == 0) return;
      typename OpenTile<T>::Guest guest(fullest);
      if (int64_t panel; guest.take_panel(panel)) body(fullest.values(), panel);
    }
  }

 private:
  ScratchVector<OpenTile<T>> tiles_;
};
