/* A qemu plugin that counts the executed instructions of functions: for each function and kind of instruction
 * a line "count <tab> mnemonic <tab> operands' registers <tab> function". Arguments: out=FILE, only=PART of
 * the names of the functions to count. arm_counts.py compiles, runs and reads it.
 *
 * Distributions package qemu without its header, so what is used of its interface, version 1, is declared
 * here.
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t qemu_plugin_id_t;
typedef struct {
  const char* target_name;
  struct {
    int min, cur;
  } version;
  bool system_emulation;
} qemu_info_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum qemu_plugin_op { QEMU_PLUGIN_INLINE_ADD_U64 };
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb*);
struct qemu_plugin_insn* qemu_plugin_tb_get_insn(const struct qemu_plugin_tb*, size_t);
char* qemu_plugin_insn_disas(const struct qemu_plugin_insn*);
const char* qemu_plugin_insn_symbol(const struct qemu_plugin_insn*);
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t,
                                           void (*)(qemu_plugin_id_t, struct qemu_plugin_tb*));
void qemu_plugin_register_vcpu_insn_exec_inline(struct qemu_plugin_insn*, enum qemu_plugin_op, void*,
                                                uint64_t);
void qemu_plugin_register_atexit_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, void*), void*);

int qemu_plugin_version = 1;

/* One kind of instruction of one function. They stay where they are: translated code adds to `executed`. */
typedef struct Counter {
  uint64_t executed;
  char* function;
  char mnemonic[16];
  char registers; /* 'v' where whole vectors take part, 's' for single floating-point values, '-' for neither
                   */
  struct Counter* next;
} Counter;

static Counter* counters;
static const char *only = "", *out_path;

static bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

/* By the operands in the disassembly: "v3.4s" and "q5" are vectors, "s3", "d3" and "h3" single values. */
static char registers_of(const char* operands) {
  char found = '-';
  for (const char* at = operands; *at != '\0'; ++at) {
    const bool begins = at == operands || strchr(" ,[{(", at[-1]) != NULL;
    if (!begins || !is_digit(at[1])) continue;
    if (*at == 'v' || *at == 'q') return 'v';
    if (*at == 's' || *at == 'd' || *at == 'h') found = 's';
  }
  return found;
}

static Counter* counter_of(const char* function, const char* mnemonic, char registers) {
  for (Counter* one = counters; one != NULL; one = one->next)
    if (one->registers == registers && strcmp(one->mnemonic, mnemonic) == 0 &&
        strcmp(one->function, function) == 0)
      return one;
  Counter* made = calloc(1, sizeof(*made));
  if (made == NULL || (made->function = strdup(function)) == NULL) abort();
  snprintf(made->mnemonic, sizeof(made->mnemonic), "%s", mnemonic);
  made->registers = registers;
  made->next = counters;
  return counters = made;
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb* block) {
  (void)id;
  for (size_t i = 0; i < qemu_plugin_tb_n_insns(block); ++i) {
    struct qemu_plugin_insn* instruction = qemu_plugin_tb_get_insn(block, i);
    const char* function = qemu_plugin_insn_symbol(instruction);
    if (function == NULL || strstr(function, only) == NULL) continue;
    char* text = qemu_plugin_insn_disas(instruction);
    char mnemonic[16] = "?";
    int length = 0;
    if (text != NULL) sscanf(text, "%15s%n", mnemonic, &length);
    Counter* counter = counter_of(function, mnemonic, text == NULL ? '-' : registers_of(text + length));
    free(text);
    qemu_plugin_register_vcpu_insn_exec_inline(instruction, QEMU_PLUGIN_INLINE_ADD_U64, &counter->executed,
                                               1);
  }
}

static void finished(qemu_plugin_id_t id, void* nothing) {
  (void)id, (void)nothing;
  FILE* out = fopen(out_path, "w");
  if (out == NULL) return; /* the reader says that there is no such file */
  for (const Counter* one = counters; one != NULL; one = one->next)
    fprintf(out, "%llu\t%s\t%c\t%s\n", (unsigned long long)one->executed, one->mnemonic, one->registers,
            one->function);
  fclose(out);
}

int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t* info, int count, char** arguments) {
  (void)info;
  for (int i = 0; i < count; ++i) {
    if (strncmp(arguments[i], "out=", 4) == 0) out_path = strdup(arguments[i] + 4);
    if (strncmp(arguments[i], "only=", 5) == 0) only = strdup(arguments[i] + 5);
  }
  if (out_path == NULL) return 1;
  qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
  qemu_plugin_register_atexit_cb(id, finished, NULL);
  return 0;
}
