// Stand-in for the libraries of TensorRT 10 and 11, so that TensorRT's own Python bindings run without a GPU.
//
// The bindings get objects from the functions `create…_INTERNAL` and call their virtual methods. Here, an object has a
// table of functions in place of the compiler's. A method's number in it is its position in its class in NvInferImpl.h,
// after two destructors; TensorRT 11 lacks methods of TensorRT 10, so some numbers differ. A call of a method that has no
// entry here ends the process with its number.
//
// An engine file (a "plan") is text: a line for each tensor, optimization profile and setting of the builder. An inference
// writes the first byte of each tile, divided by 255, as the score, and the tile's index modulo 3 as the label.

#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <sstream>
#include <string>
#include <typeinfo>
#include <utility>
#include <vector>

namespace {

using Function = void (*)();
using Table = Function const*;
using Describe = char const* (*)(char const* path);
using Enqueue = bool (*)(void* context, int64_t stream, int64_t batch, int32_t profile, int64_t scratch, bool has_run);

constexpr int64_t kScratchBytes = 5000;
constexpr int32_t kError = 1;
enum Type : int32_t { kFloat = 0, kInt8 = 2, kUint8 = 5, kInt64 = 8 };

int major = 0;             // of the bindings
void* logger = nullptr;    // of the last builder or runtime
std::string refused;       // what fails
std::string mistakes;      // wrong uses, one a line
int alive = 0;             // number of objects
Describe describe_onnx = nullptr;  // path -> tensors of an ONNX file as in a plan, or "error MESSAGE"
Enqueue enqueue = nullptr;         // adds an inference to a stream

bool refuses(std::string const& what) { return refused == what; }

void log_error(char const* message) {
    // ILogger::log; in TensorRT 11, its class has four methods before it.
    using Log = void (*)(void*, int32_t, char const*);
    auto const* table = *static_cast<Log const* const*>(logger);
    table[major == 10 ? 0 : 4](logger, kError, message);
}

template <int number>
void missing() {
    std::fprintf(stderr, "The stand-in for TensorRT has no function for method %d of this object.\n", number);
    std::abort();
}

template <size_t... numbers>
std::vector<Function> all_missing(std::index_sequence<numbers...>) {
    return {&missing<static_cast<int>(numbers)>...};
}

struct Method {
    int in_10;
    int in_11;
    Function function;
};

template <typename F>
Method method(int in_10, int in_11, F* function) {
    return {in_10, in_11, reinterpret_cast<Function>(function)};
}

template <typename F>
Method method(int number, F* function) {
    return method(number, number, function);
}

// Two values precede the methods: the offset of the entire object, and its type, of which pybind11 asks the name.
struct OfUnknownType {
    virtual ~OfUnknownType() = default;
};

Table table(std::initializer_list<Method> methods) {
    auto* made = new std::vector<Function>(all_missing(std::make_index_sequence<160>()));
    for (auto const& one : methods) (*made)[major == 10 ? one.in_10 : one.in_11] = one.function;
    auto* type = reinterpret_cast<Function>(const_cast<std::type_info*>(&typeid(OfUnknownType)));
    made->insert(made->begin(), {nullptr, type});
    return made->data() + 2;
}

struct Object;

// The second object of each object, whose methods are called.
struct Implementation {
    Table methods;
    Object* object;
};

struct Object {
    struct Part {
        virtual ~Part() = default;
    };

    Table methods;                  // the bindings expect these two members first
    Implementation* implementation = &inside;
    Implementation inside;
    Object* parent;
    int children = 0;
    std::string kind;
    Part* state;

    Object(std::string name, Table methods_of_kind, Object* made_by, Part* state_of_kind)
        : inside{methods_of_kind, this}, parent(made_by), kind(std::move(name)), state(state_of_kind) {
        static Table const destructors = table({method(0, &destroy), method(1, &destroy)});
        methods = destructors;
        ++alive;
        if (parent) ++parent->children;
    }

    static void destroy(Object* self) {
        if (self->children) mistakes += self->kind + " is deleted before what it made\n";
        if (self->parent) --self->parent->children;
        --alive;
        delete self->state;
        delete self;
    }
};

template <typename S>
S& state_of(Implementation const* self) {
    return *static_cast<S*>(self->object->state);
}

template <typename S>
S& state_of(Object const* self) {
    return *static_cast<S*>(self->state);
}

struct Dims {
    int32_t length = 0;
    int64_t sides[8] = {};
};

Dims read_dims(std::istream& in, int length) {
    Dims found;
    found.length = length;
    for (int axis = 0; axis < length; ++axis) in >> found.sides[axis];
    return found;
}

void write_dims(std::ostream& out, Dims const& dims) {
    for (int axis = 0; axis < dims.length; ++axis) out << ' ' << dims.sides[axis];
}

// Memory that the caller gets: IHostMemory

struct Memory : Object::Part {
    std::string content;
};

void* memory_data(Implementation* self) { return state_of<Memory>(self).content.data(); }
size_t memory_size(Implementation* self) { return state_of<Memory>(self).content.size(); }
int32_t memory_type(Implementation*) { return kInt8; }

Object* memory_of(std::string content) {
    static Table const methods = table({method(2, &memory_data), method(3, &memory_size), method(4, &memory_type)});
    auto* state = new Memory;
    state->content = std::move(content);
    return new Object("host memory", methods, nullptr, state);
}

// Tensors: ITensor

struct Tensor : Object::Part {
    std::string name;
    bool is_input = false;
    int32_t type = kFloat;
    Dims dims;
};

char const* tensor_name(Implementation* self) { return state_of<Tensor>(self).name.c_str(); }
Dims tensor_dims(Implementation* self) { return state_of<Tensor>(self).dims; }

Object* tensor_of(Tensor const& tensor) {
    static Table const methods = table({method(3, &tensor_name), method(5, &tensor_dims)});
    return new Object("tensor", methods, nullptr, new Tensor(tensor));
}

// What is in a plan

struct Plan {
    std::vector<Tensor> tensors;
    std::vector<std::array<Dims, 3>> profiles;  // minimum, optimum and maximum of the first input
    std::string layers;

    static Plan read(std::string const& text) {
        Plan plan;
        std::istringstream lines(text);
        for (std::string line; std::getline(lines, line);) {
            std::istringstream in(line);
            std::string word, kind;
            int length = 0;
            in >> word;
            if (word == "tensor") {
                Tensor tensor;
                in >> kind >> tensor.name >> tensor.type >> length;
                tensor.is_input = kind == "input";
                tensor.dims = read_dims(in, length);
                plan.tensors.push_back(tensor);
            } else if (word == "profile") {
                in >> length;
                plan.profiles.push_back({read_dims(in, length), read_dims(in, length), read_dims(in, length)});
            } else if (word == "layers") {
                std::getline(in, plan.layers);
            }
        }
        return plan;
    }

    Tensor const* find(std::string const& name) const {
        for (auto const& tensor : tensors)
            if (tensor.name == name) return &tensor;
        return nullptr;
    }
};

struct Engine : Object::Part {
    Plan plan;
};

// Execution contexts: IExecutionContext

struct Context : Object::Part {
    Engine* engine = nullptr;
    std::map<std::string, char*> addresses;
    Dims shape;
    int32_t profile = 0;
    int64_t scratch = 0;
    bool has_run = false;
};

void context_set_memory(Implementation* self, void* address, int64_t size) {
    if (size < kScratchBytes) mistakes += "the scratch memory is too small\n";
    state_of<Context>(self).scratch = reinterpret_cast<int64_t>(address);
}

bool context_set_profile(Implementation* self, int32_t number, void*) {
    if (refuses("profile")) {
        log_error("Profile 0 has been chosen by another context");
        return false;
    }
    auto& context = state_of<Context>(self);
    context.profile = number;
    return number < static_cast<int32_t>(context.engine->plan.profiles.size());
}

bool context_set_shape(Implementation* self, char const*, Dims const& shape) {
    auto& context = state_of<Context>(self);
    auto const& range = context.engine->plan.profiles.at(context.profile);
    context.shape = shape;
    context.has_run = false;
    for (int axis = 0; axis < shape.length; ++axis)
        if (shape.sides[axis] < range[0].sides[axis] || shape.sides[axis] > range[2].sides[axis]) return false;
    return !refuses("shape");
}

bool context_set_address(Implementation* self, char const* name, void* address) {
    state_of<Context>(self).addresses[name] = static_cast<char*>(address);
    return !refuses("address");
}

bool context_enqueue(Implementation* self, void* stream) {
    auto& context = state_of<Context>(self);
    for (auto const& tensor : context.engine->plan.tensors)
        if (!context.addresses.count(tensor.name)) mistakes += tensor.name + " has no address\n";
    if (refuses("run")) return false;
    bool const accepted = enqueue(&context, reinterpret_cast<int64_t>(stream), context.shape.sides[0], context.profile,
                                  context.scratch, context.has_run);
    context.has_run = context.has_run || accepted;
    return accepted;
}

Object* context_of(Object* engine) {
    static Table const methods = table({
        method(49, 48, &context_set_memory),
        method(17, 16, &context_set_profile),
        method(21, 20, &context_set_shape),
        method(24, 23, &context_set_address),
        method(37, 36, &context_enqueue),
    });
    auto* state = new Context;
    state->engine = &state_of<Engine>(engine);
    return new Object("execution context", methods, engine, state);
}

// The description of an engine: IEngineInspector

struct Inspector : Object::Part {
    std::string layers;
};

char const* inspector_layers(Implementation* self, int32_t) { return state_of<Inspector>(self).layers.c_str(); }

// Engines: ICudaEngine

Object* engine_context(Implementation* self, int32_t) {
    return refuses("memory") ? nullptr : context_of(self->object);
}

Object* engine_inspector(Implementation* self) {
    static Table const methods = table({method(6, &inspector_layers)});
    auto* state = new Inspector;
    state->layers = state_of<Engine>(self).plan.layers;
    return new Object("engine inspector", methods, self->object, state);
}

int32_t engine_profiles(Implementation* self) { return static_cast<int32_t>(state_of<Engine>(self).plan.profiles.size()); }
int32_t engine_tensors(Implementation* self) { return static_cast<int32_t>(state_of<Engine>(self).plan.tensors.size()); }
char const* engine_tensor(Implementation* self, int32_t i) { return state_of<Engine>(self).plan.tensors.at(i).name.c_str(); }
Dims engine_dims(Implementation* self, char const* name) { return state_of<Engine>(self).plan.find(name)->dims; }
int32_t engine_type(Implementation* self, char const* name) { return state_of<Engine>(self).plan.find(name)->type; }
int64_t engine_scratch(Implementation*) { return kScratchBytes; }

Dims engine_range(Implementation* self, char const*, int32_t profile, int32_t which) {
    return state_of<Engine>(self).plan.profiles.at(profile)[which];
}

// Runtimes: IRuntime

Object* runtime_load(Implementation* self, void const* content, size_t size) {
    static Table const methods = table({
        method(5, &engine_context),
        method(10, 8, &engine_profiles),
        method(18, 14, &engine_inspector),
        method(19, 15, &engine_dims),
        method(20, 16, &engine_type),
        method(29, 25, &engine_range),
        method(30, 26, &engine_tensors),
        method(31, 27, &engine_tensor),
        method(52, 44, &engine_scratch),
    });
    if (refuses("plan")) {
        log_error("Magic tag does not match");
        return nullptr;
    }
    auto* state = new Engine;
    state->plan = Plan::read(std::string(static_cast<char const*>(content), size));
    return new Object("engine", methods, self->object, state);
}

// Networks: INetworkDefinition

struct Network : Object::Part {
    int64_t flags = 0;
    std::string text;  // lines of the plan
    std::vector<Object*> inputs;

    ~Network() override {
        for (auto* input : inputs) Object::destroy(input);
    }
};

Object* network_input(Implementation* self, int32_t index) { return state_of<Network>(self).inputs.at(index); }

// Optimization profiles: IOptimizationProfile

struct Profile : Object::Part {
    std::array<Dims, 3> dims;
};

bool profile_set(Implementation* self, char const*, int32_t which, Dims const& dims) {
    state_of<Profile>(self).dims[which] = dims;
    return !refuses("set_shape");
}

// Timing caches: ITimingCache

Object* cache_serialize(Implementation* self) { return memory_of(state_of<Memory>(self).content); }

// Configurations: IBuilderConfig

struct Config : Object::Part {
    std::map<std::string, int64_t> settings;
    std::vector<Object*> profiles;
    Object* cache = nullptr;
    void* monitor = nullptr;
};

void config_set(Implementation* self, std::string const& name, int64_t value) {
    state_of<Config>(self).settings[name] = value;
}

void config_set_flag(Implementation* self, int32_t flag) { config_set(self, "flag-" + std::to_string(flag), 1); }
void config_clear_flag(Implementation* self, int32_t flag) { config_set(self, "flag-" + std::to_string(flag), 0); }
void config_set_verbosity(Implementation* self, int32_t value) { config_set(self, "profiling_verbosity", value); }
void config_set_level(Implementation* self, int32_t value) { config_set(self, "optimization_level", value); }
void config_set_compatibility(Implementation* self, int32_t value) { config_set(self, "compatibility", value); }

void config_set_pool(Implementation* self, int32_t pool, size_t size) {
    config_set(self, "memory-pool-" + std::to_string(pool), static_cast<int64_t>(size));
}

int32_t config_add_profile(Implementation* self, Object* profile) {
    if (refuses("add_optimization_profile")) return -1;
    auto& profiles = state_of<Config>(self).profiles;
    profiles.push_back(profile);
    return static_cast<int32_t>(profiles.size()) - 1;
}

Object* config_create_cache(Implementation*, void const* content, size_t size) {
    static Table const methods = table({method(2, &cache_serialize)});
    std::string text(static_cast<char const*>(content), size);
    if (text == "damaged") return nullptr;
    auto* state = new Memory;
    state->content = text;
    return new Object("timing cache", methods, nullptr, state);
}

bool config_set_cache(Implementation* self, Object* cache, bool ignore_mismatch) {
    if (ignore_mismatch) mistakes += "a timing cache of another GPU is accepted\n";
    if (state_of<Memory>(cache).content == "of another GPU") return false;
    state_of<Config>(self).cache = cache;
    return true;
}

Object* config_cache(Implementation* self) { return state_of<Config>(self).cache; }
void config_set_monitor(Implementation* self, void* monitor) { state_of<Config>(self).monitor = monitor; }

// Builders: IBuilder

Object* builder_network(Implementation* self, uint32_t flags) {
    static Table const methods = table({method(15, &network_input)});
    auto* state = new Network;
    state->flags = flags;
    return new Object("network", methods, self->object, state);
}

Object* builder_config(Implementation* self) {
    static Table const methods = table({
        method(10, 8, &config_clear_flag),
        method(11, 9, &config_set_flag),
        method(25, 23, &config_add_profile),
        method(27, 25, &config_set_verbosity),
        method(40, 29, &config_create_cache),
        method(41, 30, &config_set_cache),
        method(42, 31, &config_cache),
        method(43, 32, &config_set_pool),
        method(47, 36, &config_set_level),
        method(49, 38, &config_set_compatibility),
        method(56, 45, &config_set_monitor),
    });
    return new Object("configuration", methods, self->object, new Config);
}

struct Builder : Object::Part {
    std::vector<Object*> profiles;

    ~Builder() override {
        for (auto* profile : profiles) Object::destroy(profile);
    }
};

Object* builder_profile(Implementation* self) {
    static Table const methods = table({method(2, &profile_set)});
    auto* made = new Object("optimization profile", methods, nullptr, new Profile);
    state_of<Builder>(self).profiles.push_back(made);
    return made;
}

void* builder_logger(Implementation*) { return logger; }

void report_progress(void* monitor) {
    if (!monitor) return;
    using Start = void (*)(void*, char const*, char const*, int32_t);
    using Step = bool (*)(void*, char const*, int32_t);
    using Finish = void (*)(void*, char const*);
    auto const* methods = *static_cast<Function const* const*>(monitor);
    reinterpret_cast<Start>(methods[4])(monitor, "Building", nullptr, 2);
    reinterpret_cast<Start>(methods[4])(monitor, "Tactics", "Building", 9);
    for (int step = 0; step < 2; ++step) reinterpret_cast<Step>(methods[5])(monitor, "Building", step);
    reinterpret_cast<Finish>(methods[6])(monitor, "Tactics");
    reinterpret_cast<Finish>(methods[6])(monitor, "Building");
}

Object* builder_build(Implementation*, Object* network, Object* config) {
    if (refuses("build")) {
        log_error("Could not find any implementation for node head");
        return nullptr;
    }
    auto& settings = state_of<Config>(config);
    report_progress(settings.monitor);
    std::ostringstream plan;
    plan << state_of<Network>(network).text;
    plan << "network-flags " << state_of<Network>(network).flags << '\n';
    for (auto const& [name, value] : settings.settings) plan << name << ' ' << value << '\n';
    for (auto const* profile : settings.profiles) {
        auto const& dims = state_of<Profile>(profile).dims;
        plan << "profile " << dims[0].length;
        for (auto const& one : dims) write_dims(plan, one);
        plan << '\n';
    }
    if (settings.cache) {
        auto& content = state_of<Memory>(settings.cache).content;
        plan << "timing-cache " << content << '\n';
        content = "learned";
    }
    return memory_of(plan.str());
}

// The parser of ONNX files: IParser and IParserError, whose methods the bindings call directly

struct ParserError {
    Table methods;
    std::string message;
};

char const* error_message(ParserError* self) { return self->message.c_str(); }

struct Parser {
    Table methods;
    Object* network;
    std::vector<ParserError> errors;
};

bool parser_read(Parser* self, char const* path, int32_t) {
    static Table const error_methods = table({method(1, &error_message)});
    std::string const text = describe_onnx(path);
    if (text.rfind("error ", 0) == 0) {
        self->errors.push_back({error_methods, text.substr(6)});
        return false;
    }
    auto& network = state_of<Network>(self->network);
    network.text = text;
    for (auto const& tensor : Plan::read(text).tensors)
        if (tensor.is_input) network.inputs.push_back(tensor_of(tensor));
    return true;
}

int32_t parser_errors(Parser* self) { return static_cast<int32_t>(self->errors.size()); }
ParserError* parser_error(Parser* self, int32_t index) { return &self->errors.at(index); }

void parser_destroy(Parser* self) {
    --alive;
    delete self;
}

void start(void* logger_of_caller, int32_t version) {
    major = version / 10000;
    logger = logger_of_caller;
}

}  // namespace

extern "C" {

void* createInferRuntime_INTERNAL(void* logger_of_caller, int32_t version) {
    start(logger_of_caller, version);
    static Table const methods = table({method(3, &runtime_load)});
    return refuses("start") ? nullptr : new Object("runtime", methods, nullptr, nullptr);
}

void* createInferBuilder_INTERNAL(void* logger_of_caller, int32_t version) {
    start(logger_of_caller, version);
    static Table const methods = table({
        method(7, 5, &builder_config),
        method(8, 6, &builder_network),
        method(9, 7, &builder_profile),
        method(14, 11, &builder_build),
        method(16, 13, &builder_logger),
    });
    return refuses("start") ? nullptr : new Object("builder", methods, nullptr, new Builder);
}

void* createNvOnnxParser_INTERNAL(void* network, void*, int) {
    static Table const methods = table({
        method(1, &parser_read),
        method(5, 3, &parser_errors),
        method(6, 4, &parser_error),
        method(8, 6, &parser_destroy),
        method(9, 7, &parser_destroy),
    });
    ++alive;
    return new Parser{methods, static_cast<Object*>(network), {}};
}

void* createInferRefitter_INTERNAL(void*, void*, int32_t) { return nullptr; }
void* createNvOnnxParserRefitter_INTERNAL(void*, void*, int) { return nullptr; }
void* getBuilderPluginRegistry(int32_t) { return nullptr; }
void* getPluginRegistry() { return nullptr; }
int getNvOnnxParserVersion() { return 0; }
bool initLibNvInferPlugins(void*, char const*) { return true; }

// For the tests

void stand_in_connect(Describe describe, Enqueue enqueue_inference) {
    describe_onnx = describe;
    enqueue = enqueue_inference;
}

void stand_in_refuse(char const* what) { refused = what; }
int stand_in_alive() { return alive; }

char const* stand_in_mistakes() {
    static std::string reported;
    reported = std::exchange(mistakes, "");
    return reported.c_str();
}

void* stand_in_address(void* of_context, char const* tensor) {
    return static_cast<Context*>(of_context)->addresses.at(tensor);
}

int64_t stand_in_tile_bytes(void* of_context) {
    auto const& shape = static_cast<Context*>(of_context)->shape;
    int64_t bytes = 1;
    for (int axis = 1; axis < shape.length; ++axis) bytes *= shape.sides[axis];
    return bytes;
}

void stand_in_compute(void* of_context) {
    auto& context = *static_cast<Context*>(of_context);
    int64_t const batch = context.shape.sides[0];
    int64_t const tile_bytes = stand_in_tile_bytes(of_context);
    for (auto const& tensor : context.engine->plan.tensors) {
        if (tensor.is_input) continue;
        int64_t row = 1;
        for (int axis = 1; axis < tensor.dims.length; ++axis) row *= tensor.dims.sides[axis];
        char* values = context.addresses[tensor.name];
        std::memset(values, 0, batch * row * (tensor.type == kInt64 ? 8 : 4));
        for (int64_t tile = 0; tile < batch; ++tile) {
            auto const first = static_cast<uint8_t>(context.addresses["tiles"][tile * tile_bytes]);
            if (tensor.name == "scores") reinterpret_cast<float*>(values)[tile * row] = static_cast<float>(first) / 255;
            if (tensor.name == "labels") reinterpret_cast<int64_t*>(values)[tile * row] = tile % 3;
        }
    }
}
}
