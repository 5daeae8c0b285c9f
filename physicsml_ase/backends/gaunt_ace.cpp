// The energy of `models/gaunt_ace.py` and its forces and virial, in one pass over the atoms of one structure.
//
// The equations and their order are those of the module: mixed densities, powers on half a grid on the sphere in even
// and odd parts, readouts, messages. What differs is where the sums run. Of edges nothing is kept but in small
// structures: harmonics and radial functions are made again in each pass, which costs less than memory does. An atom
// hears its neighbours by reading their h, so that all of an edge's gradient arises where its centre is; what belongs to
// the neighbour, its part of the force and of the gradient to h, is added to sums that each thread has for itself.
//
// Layers are passes over all atoms: forward up to the last layer, whose forward and reverse pass are one, then
// back. Atoms go in blocks of BLOCK, lm-major [row][atom][channel] as in the module, so that weights are read once
// a block.

#include <algorithm>
#include <cstring>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "memory.h"

namespace {

// One thread's share of the atoms, a block at a time.

struct Worker {
    const Model& model;
    const Structure& structure;
    Buffers& buffers;
    Own& own;
    int thread, threads;
    float* energies;
    float* features;  // the last readout's inputs, or null
    int64_t block = 0, atom[BLOCK];
    int element[BLOCK], num_edges[BLOCK];
    const float* gated_density;
    float *g_gated_density, *mixed, *g_input;  // of the block, where they are kept for the way back if they are
    alignas(64) float room_for_density[M * AQ];
    alignas(64) float room_for_mixed[M * AC], g_mixed[M * AC], message[M * AC];
    alignas(64) float product[ROWS_SENT * BLOCK * NU * C], g_product[ROWS_SENT * BLOCK * NU * C];
    alignas(64) float input[BLOCK * (NU + 1) * C], room_for_g_input[BLOCK * (NU + 1) * C];

    Worker(const Model& model, const Structure& structure, Buffers& buffers, int thread, int threads, float* energies,
           float* features)
        : model(model), structure(structure), buffers(buffers), own(buffers.own[thread]), thread(thread),
          threads(threads), energies(energies), features(features) {
        const size_t blocks = (structure.num_atoms + BLOCK - 1) / BLOCK;
        for (int t = 0; t < LAYERS - 1; t++)
            std::memset(own.g_h[t], 0, blocks * BLOCK * ROWS_SENT * C * sizeof(float));
        std::memset(own.forces, 0, 3 * structure.num_atoms * sizeof(double));
        std::memset(own.virial, 0, 9 * sizeof(double));
    }

    int64_t begin(int thread) const { return first_block<BLOCK>(structure.start, structure.num_atoms, thread, threads); }

    template <class F>
    void each_block(F&& run) {
        const int64_t end = thread + 1 < threads ? begin(thread + 1) : (structure.num_atoms + BLOCK - 1) / BLOCK;
        for (block = begin(thread); block < end; block++) {
            for (int a = 0; a < BLOCK; a++) {  // the last block may be short of atoms
                const int64_t i = block * BLOCK + a;
                const bool there = i < structure.num_atoms;
                atom[a] = i;
                element[a] = there ? structure.element[i] : 0;
                num_edges[a] = there ? int(structure.start[i + 1] - structure.start[i]) : 0;
            }
            run();
        }
    }

    Edges* edges(int a) const {
        const size_t before = buffers.keeps_edges ? block * BLOCK + a : thread * BLOCK + a;
        return buffers.edges + before * (buffers.longest / LANES);
    }
    float* heard(int a) const { return own.heard + a * buffers.longest * C; }
    float* radii(int a) const { return own.radii + a * buffers.longest * RADII; }
    const int32_t* neighbors(int a) const {  // atoms that fill up the last block have none
        return structure.neighbor + structure.start[std::min(atom[a], structure.num_atoms)];
    }
    float* of_block(float* all, size_t size) const { return all + (LAYERS > 1 ? block : thread) * size; }

    void geometry() {
        for (int a = 0; a < BLOCK; a++)
            for (int e = 0; e < num_edges[a]; e += LANES)
                measure(structure.r_ij + 3 * (structure.start[atom[a]] + e), std::min(num_edges[a] - e, LANES),
                        model.cutoff, model.stretch, edges(a)[e / LANES]);
    }

    // Runs of neighbours of the same element among LANES edges.
    template <class F>
    void each_run(int a, F&& run) const {
        const int32_t* j = neighbors(a);
        for (int e = 0; e < num_edges[a];) {
            const int z = structure.element[j[e]], end = std::min(num_edges[a], e / LANES * LANES + LANES);
            int next = e + 1;
            while (next < end && structure.element[j[next]] == z) next++;
            run(z, edges(a)[e / LANES], e % LANES, next - e);
            e = next;
        }
    }

    void density() {
        float* d = of_block(buffers.density, M * AQ);
        std::memset(d, 0, M * AQ * sizeof(float));
        for (int a = 0; a < BLOCK; a++)
            each_run(a, [&](int z, const Edges& edges, int lane, int count) {
                alignas(64) float radial[LANES * K_PAD], sums[M * K_PAD];
                for (int first = 0; first < K_PAD; first += LANES) {
                    V of_edges[LANES];
                    for (int k = 0; k < LANES; k++) of_edges[k] = first + k < K ? edges.radial[first + k] : V{};
                    transpose(of_edges);
                    for (int e = 0; e < count; e++) store(radial + e * K_PAD + first, of_edges[lane + e]);
                }
                const float* y = reinterpret_cast<const float*>(edges.y) + lane;
                multiply<K_PAD>(M, y, LANES, 1, radial, K_PAD, count, sums, K_PAD);
                for (int w = model.channels ? 0 : z; w < (model.channels ? W : z + 1); w++) {
                    const float weight = model.channels ? model.channels[z * W + w] : 1;
                    for (int m = 0; m < M; m++)
                        for (int k = 0; k < K; k++)
                            d[m * AQ + a * Q_PAD + w * K + k] += weight * sums[m * K_PAD + k];
                }
            });
    }

    // The density times its gates, in `to` where there are any.
    const float* gate_density(const float* from, float* to) const {
        if (!model.density_gate) return from;
        for (int m = 0; m < M; m++)
            for (int a = 0; a < BLOCK; a++) {
                const float* gate = model.density_gate + (element[a] * (LMAX + 1) + FELT.row_degree[m]) * Q_PAD;
                const int at = m * AQ + a * Q_PAD;
                for (int q = 0; q < Q_PAD; q += LANES) store(to + at + q, load(from + at + q) * load(gate + q));
            }
        return to;
    }

    template <int WIDTH>
    static void scale(float* x, const float* by) {
        for (int c = 0; c < WIDTH; c += LANES) store(x + c, load(x + c) * load(by + c));
    }

    template <int T>
    void gate_mixed(float* x) const {
        if (!model.layers[T].mix_gate) return;
        for (int m = 0; m < M; m++)
            for (int a = 0; a < BLOCK; a++) {
                const float* gate = model.layers[T].mix_gate + (element[a] * (LMAX + 1) + FELT.row_degree[m]) * C;
                scale<C>(x + m * AC + a * C, gate);
            }
    }

    template <int T>
    void gate_product(float* x) const {
        if (!model.layers[T].product_gate) return;
        for (int row = 0; row < square(ELL<T> + 1); row++)
            for (int a = 0; a < BLOCK; a++)
                scale<NU * C>(x + (row * BLOCK + a) * NU * C, model.layers[T].product_gate + element[a] * NU * C);
    }

    // S of each atom, and what was heard along each edge.
    template <int T>
    void hear() {
        const float* h = buffers.h[T - 1];
        for (int a = 0; a < BLOCK; a++) {
            const int32_t* j = neighbors(a);
            for (int m = 0; m < M && !num_edges[a]; m++)
                for (int c = 0; c < C; c++) message[m * AC + a * C + c] = 0;
            for (int first = 0; first < num_edges[a]; first += LANES) {
                const Edges& here = edges(a)[first / LANES];
                const float* radial = reinterpret_cast<const float*>(here.radial);
                const float* y = reinterpret_cast<const float*>(here.y);
                float *r = radii(a) + first * RADII, *to = heard(a) + first * C;
                const int count = std::min(num_edges[a] - first, LANES);
                multiply<RADII>(count, radial, 1, LANES, model.layers[T].radial, RADII, K, r, RADII);
                for (int e = 0; e < count; e++) {
                    const float* h_j = h + size_t(j[first + e]) * ROWS_SENT * C;
                    for (int c = 0; c < C; c += LANES) {
                        V total = load(r + e * RADII + c) * load(h_j + c);
                        for (int part = 1; part <= L_SENT; part++) {
                            const int l = SENT.at[part];
                            V along = {};
                            for (int m = 0; m < 2 * l + 1; m++)
                                along += y[(FELT.first[l] + m) * LANES + e] * load(h_j + (SENT.first[l] + m) * C + c);
                            total += load(r + e * RADII + part * C + c) * along;
                        }
                        store(to + e * C + c, total);
                    }
                }
                multiply<C>(M, y, LANES, 1, to, C, count, message + a * C, AC, first > 0);
            }
        }
    }

    // Mixed densities and messages, and their powers.
    template <int T>
    void products() {
        const Layer& layer = model.layers[T];
        for (int l = 0; l <= LMAX; l++) {
            const int row = FELT.first[l], rows = (2 * l + 1) * BLOCK;
            multiply<C>(rows, gated_density + row * AQ, Q_PAD, 1, layer.mix_density + l * Q * C, C, Q,
                        mixed + row * AC, C);
            if constexpr (T > 0)
                multiply<C>(rows, message + row * AC, C, 1, layer.mix_message + l * C * C, C, C,
                            mixed + row * AC, C, true);
        }
        gate_mixed<T>(mixed);
        Product<ELL<T>>::forward(mixed, layer.grid, product);
        gate_product<T>(product);
    }

    template <int T>
    void readout() {
        const Layer& layer = model.layers[T];
        constexpr int F = INPUT<T>;
        for (int a = 0; a < BLOCK; a++) {
            std::memcpy(input + a * F, product + a * NU * C, NU * C * sizeof(float));
            if constexpr (T > 0)
                std::memcpy(input + a * F + NU * C, buffers.h[T - 1] + atom[a] * ROWS_SENT * C, C * sizeof(float));
        }
        if (T == LAYERS - 1 && features)
            for (int a = 0; a < BLOCK; a++)
                if (atom[a] < structure.num_atoms) std::memcpy(features + atom[a] * F, input + a * F, F * sizeof(float));
        alignas(64) float hidden[BLOCK * H_PAD];
        for (int a = 0; a < BLOCK; a++) {
            std::memcpy(hidden + a * H_PAD, layer.hidden_bias + element[a] * H_PAD, H_PAD * sizeof(float));
            std::memcpy(g_input + a * F, layer.linear, F * sizeof(float));
        }
        multiply<H_PAD>(BLOCK, input, F, 1, layer.hidden, H_PAD, F, hidden, H_PAD, true);
        for (int a = 0; a < BLOCK; a++) {
            V total = {};
            for (int k = 0; k < H_PAD; k += LANES) {
                const V x = load(hidden + a * H_PAD + k), out = load(layer.hidden_out + k);
                const V s = sigmoid(x), silu = x * s;
                total += silu * out;
                store(hidden + a * H_PAD + k, out * (s + silu * (1 - s)));
            }
            for (int c = 0; c < F; c += LANES) total += load(input + a * F + c) * load(layer.linear + c);
            if (atom[a] < structure.num_atoms) {
                const float energy = sum(total) + layer.energy_bias[element[a]];
                energies[atom[a]] = T == 0 ? energy : energies[atom[a]] + energy;
            }
        }
        multiply<F>(BLOCK, hidden, H_PAD, 1, layer.hidden_T, F, HIDDEN, g_input, F, true);
    }

    template <int T>
    void send() {
        const Layer& layer = model.layers[T];
        alignas(64) float sent[ROWS_SENT * AC];
        for (int l = 0; l <= L_SENT; l++) {
            const int row = SENT.first[l];
            multiply<C>((2 * l + 1) * BLOCK, product + row * BLOCK * NU * C, NU * C, 1,
                        layer.send + l * NU * C * C, C, NU * C, sent + row * AC, C);
        }
        for (int a = 0; a < BLOCK; a++) {
            for (int c = 0; c < C; c++) sent[a * C + c] += layer.send_bias[element[a] * C + c];
            for (int row = 0; row < ROWS_SENT; row++)
                std::memcpy(buffers.h[T] + (atom[a] * ROWS_SENT + row) * C, sent + row * AC + a * C,
                            C * sizeof(float));
        }
    }

    // From the gradient to the readout's input, and to what was sent, those to mixed and to density.
    template <int T>
    void reverse_products() {
        const Layer& layer = model.layers[T];
        constexpr int F = INPUT<T>;
        if constexpr (!LAST<T>) {
            alignas(64) float g_sent[ROWS_SENT * AC];
            for (int a = 0; a < BLOCK; a++)
                for (int row = 0; row < ROWS_SENT; row++)
                    for (int c = 0; c < C; c += LANES) {
                        const size_t at = (atom[a] * ROWS_SENT + row) * C + c;
                        V total = load(buffers.own[0].g_h[T] + at);
                        for (int k = 1; k < threads; k++) total += load(buffers.own[k].g_h[T] + at);
                        store(g_sent + row * AC + a * C + c, total);
                    }
            for (int l = 0; l <= L_SENT; l++) {
                const int row = SENT.first[l];
                multiply<NU * C>((2 * l + 1) * BLOCK, g_sent + row * AC, C, 1, layer.send_T + l * NU * C * C, NU * C,
                                 C, g_product + row * BLOCK * NU * C, NU * C);
            }
        }
        for (int a = 0; a < BLOCK; a++)
            for (int c = 0; c < NU * C; c += LANES) {
                float* g = g_product + a * NU * C + c;
                store(g, load(g_input + a * F + c) + (LAST<T> ? V{} : load(g)));
            }
        gate_product<T>(g_product);
        Product<ELL<T>>::reverse(mixed, layer.grid, g_product, g_mixed);
        gate_mixed<T>(g_mixed);
        for (int l = 0; l <= LMAX; l++) {
            const int row = FELT.first[l];
            multiply<Q_PAD>((2 * l + 1) * BLOCK, g_mixed + row * AC, C, 1, layer.mix_density_T + l * C * Q_PAD, Q_PAD,
                            C, g_gated_density + row * AQ, Q_PAD, !LAST<T>);
        }
    }

    // Adds the gradient to some pair vectors to forces and virial.
    void push(int a, int first, const V* g, double* force, V* virial) {
        const Edges& here = edges(a)[first / LANES];
        const int count = std::min(num_edges[a] - first, LANES);
        const int32_t* j = neighbors(a) + first;
        for (int lane = 0; lane < count; lane++)
            for (int k = 0; k < 3; k++) {
                force[k] += g[k][lane];
                own.forces[3 * size_t(j[lane]) + k] -= g[k][lane];
            }
        V inside;
        for (int lane = 0; lane < LANES; lane++) inside[lane] = lane < count ? here.distance[lane] : 0;
        for (int k = 0; k < 3; k++)
            for (int x = 0; x < 3; x++) virial[3 * k + x] += inside * here.u[k] * g[x];
    }
    void push_atom(int a, const double* force, const V* virial) {
        for (int k = 0; k < 3; k++) own.forces[3 * atom[a] + k] += force[k];
        for (int k = 0; k < 9; k++) own.virial[k] += sum(virial[k]);
    }

    template <int T>
    void reverse_hear() {
        const Layer& layer = model.layers[T];
        const float* h = buffers.h[T - 1];
        float* g_h = own.g_h[T - 1];
        float* g_message = message;
        for (int l = 0; l <= LMAX; l++) {
            const int row = FELT.first[l];
            multiply<C>((2 * l + 1) * BLOCK, g_mixed + row * AC, C, 1, layer.mix_message_T + l * C * C, C, C,
                        g_message + row * AC, C);
        }
        alignas(64) float turned[C * M_PAD], g_heard[LANES * C], slopes[LANES * RADII], g_rows[LANES * M_PAD];
        for (int a = 0; a < BLOCK; a++) {
            if (!num_edges[a]) continue;
            for (int c = 0; c < C; c += LANES)
                for (int m = 0; m < M_PAD; m += LANES) {
                    V square[LANES];
                    for (int k = 0; k < LANES; k++)
                        square[k] = m + k < M ? load(g_message + (m + k) * AC + a * C + c) : V{};
                    transpose(square);
                    for (int k = 0; k < LANES; k++) store(turned + (c + k) * M_PAD + m, square[k]);
                }
            double force[3] = {};
            V virial[9] = {};
            const int32_t* j = neighbors(a);
            for (int first = 0; first < num_edges[a]; first += LANES) {
                const Edges& here = edges(a)[first / LANES];
                const float* slope = reinterpret_cast<const float*>(here.slope);
                const float* y = reinterpret_cast<const float*>(here.y);
                const float *r = radii(a) + first * RADII;
                const int count = std::min(num_edges[a] - first, LANES);
                multiply<C>(count, y, 1, LANES, g_message + a * C, AC, M, g_heard, C);
                multiply<M_PAD>(count, heard(a) + first * C, C, 1, turned, M_PAD, C, g_rows, M_PAD);
                multiply<RADII>(count, slope, 1, LANES, layer.radial, RADII, K, slopes, RADII);
                alignas(64) float own_rows[ROWS_SENT][LANES] = {};  // of each edge's harmonics in its own message
                for (int e = 0; e < count; e++) {
                    const float* h_j = h + size_t(j[first + e]) * ROWS_SENT * C;
                    float* g_j = g_h + size_t(j[first + e]) * ROWS_SENT * C;
                    V g_y[ROWS_SENT] = {};  // the first one along the edge, whose harmonic is constant
                    for (int c = 0; c < C; c += LANES) {
                        const V g = load(g_heard + e * C + c);
                        store(g_j + c, load(g_j + c) + g * load(r + e * RADII + c));
                        V slope_sum = load(h_j + c) * load(slopes + e * RADII + c);
                        for (int part = 1; part <= L_SENT; part++) {
                            const int l = SENT.at[part];
                            const V g_along = g * load(r + e * RADII + part * C + c);
                            V projected = {};
                            for (int m = 0; m < 2 * l + 1; m++) {
                                const int row = SENT.first[l] + m;
                                const V h_row = load(h_j + row * C + c);
                                const float y_row = y[(FELT.first[l] + m) * LANES + e];
                                projected += y_row * h_row;
                                g_y[row] += g_along * h_row;
                                store(g_j + row * C + c, load(g_j + row * C + c) + y_row * g_along);
                            }
                            slope_sum += projected * load(slopes + e * RADII + part * C + c);
                        }
                        g_y[0] += g * slope_sum;
                    }
                    unroll<(ROWS_SENT + LANES - 1) / LANES>([&](auto part) {
                        constexpr int first = part * LANES, some = std::min(ROWS_SENT - first, LANES);
                        const V found = sums<some>(g_y + first);
                        unroll<some>([&](auto k) { own_rows[first + k][e] = found[lane_of_sum(k, some)]; });
                    });
                }
                V g_y[M_PAD], g[3];
                for (int m = 0; m < M_PAD; m += LANES) {
                    for (int e = 0; e < LANES; e++) g_y[m + e] = e < count ? load(g_rows + e * M_PAD + m) : V{};
                    transpose(g_y + m);
                }
                for (int row = 1; row < ROWS_SENT; row++) {
                    const int l = SENT.row_degree[row];
                    g_y[FELT.first[l] + row - SENT.first[l]] += load(own_rows[row]);
                }
                pull(here, g_y, load(own_rows[0]), g);
                push(a, first, g, force, virial);
            }
            push_atom(a, force, virial);
        }
    }

    void reverse_density() {
        gate_density(g_gated_density, g_gated_density);
        for (int a = 0; a < BLOCK; a++) {
            double force[3] = {};
            V virial[9] = {}, g_y[M] = {}, along = {};
            int last = -1;
            alignas(64) float g_sums[M * K];
            const Edges* begin = edges(a);
            const int n = num_edges[a];
            each_run(a, [&](int z, const Edges& here, int lane, int count) {
                if (z != last)
                    for (int m = 0; m < M; m++)
                        for (int k = 0; k < K; k++) {
                            const float* g = g_gated_density + m * AQ + a * Q_PAD + k;
                            float total = 0;
                            if (!model.channels) total = g[z * K];
                            else for (int w = 0; w < W; w++) total += model.channels[z * W + w] * g[w * K];
                            g_sums[m * K + k] = total;
                        }
                last = z;
                const int first = int(&here - begin) * LANES;
                if (lane == 0) {
                    along = V{};
                    for (int m = 0; m < M; m++) g_y[m] = V{};
                }
                V radial[K], slope[K];
                for (int k = 0; k < K; k++)
                    for (int e = 0; e < LANES; e++) {
                        const bool inside = e >= lane && e < lane + count;
                        radial[k][e] = inside ? here.radial[k][e] : 0;
                        slope[k][e] = inside ? here.slope[k][e] : 0;
                    }
                for (int m = 0; m < M; m++) {
                    V of_y = {}, of_slope = {};
                    for (int k = 0; k < K; k++) {
                        of_y += g_sums[m * K + k] * radial[k];
                        of_slope += g_sums[m * K + k] * slope[k];
                    }
                    g_y[m] += of_y;
                    along += here.y[m] * of_slope;
                }
                if (first + lane + count == std::min(n, first + LANES)) {
                    V g[3];
                    pull(here, g_y, along, g);
                    push(a, first, g, force, virial);
                }
            });
            if (n) push_atom(a, force, virial);
        }
    }

    template <int T>
    void enter() {  // up to the readout of layer T
        if constexpr (T == 0) density();
        gated_density = gate_density(of_block(buffers.density, M * AQ), room_for_density);
        if constexpr (T > 0) hear<T>();
        products<T>();
        readout<T>();
    }
    template <int T>
    void leave() {  // from the gradient to the mixed densities
        if constexpr (T > 0) reverse_hear<T>();
        else reverse_density();
    }

    template <int T>
    void kept() {  // for the way back
        mixed = buffers.mixed[T] + block * M * AC;
        g_input = buffers.g_input[T] + block * BLOCK * (NU + 1) * C;
    }

    template <int T>
    void forward() {
        each_block([&] {
            if (T == 0 || !buffers.keeps_edges) geometry();
            kept<T>();
            enter<T>();
            send<T>();
        });
    }
    void turn() {
        constexpr int T = LAYERS - 1;
        each_block([&] {
            if (T == 0 || !buffers.keeps_edges) geometry();
            mixed = room_for_mixed, g_input = room_for_g_input;
            g_gated_density = of_block(buffers.g_density, M * AQ);
            enter<T>();
            reverse_products<T>();
            if constexpr (T > 0) hand_down<T>();
            leave<T>();
        });
    }
    template <int T>
    void reverse() {
        each_block([&] {
            if (!buffers.keeps_edges) geometry();
            if constexpr (T > 0) hear<T>();
            kept<T>();
            g_gated_density = of_block(buffers.g_density, M * AQ);
            reverse_products<T>();
            if constexpr (T > 0) hand_down<T>();
            leave<T>();
        });
    }
    // The readout of layer T also sees what the atom itself sent before.
    template <int T>
    void hand_down() {
        for (int a = 0; a < BLOCK; a++) {
            float* g = own.g_h[T - 1] + atom[a] * ROWS_SENT * C;
            for (int c = 0; c < C; c++) g[c] += g_input[a * INPUT<T> + NU * C + c];
        }
    }
};

inline void wait() {
#pragma omp barrier
}
template <int T>
void all_forward(Worker& worker) {
    if constexpr (T < LAYERS - 1) {
        worker.forward<T>();
        wait();
        all_forward<T + 1>(worker);
    }
}
template <int T>
void all_reverse(Worker& worker) {
    if constexpr (T >= 0) {
        worker.reverse<T>();
        wait();
        all_reverse<T - 1>(worker);
    }
}

}  // namespace

extern "C" {

// Energies (N), forces (N, 3) and virial (3, 3) in units of the energy scale; where they are asked for, also what the
// last readout reads of each atom, features (N, F). Returns how many bytes of scratch it needs; if that is more than
// there are, nothing has been done.
size_t compute(const Model* model, int64_t num_atoms, const int64_t* start, const int32_t* neighbor,
               const int32_t* element, const float* r_ij, int threads, char* scratch, size_t size, float* energies,
               double* forces, double* virial, float* features) {
    const Structure structure{num_atoms, start, neighbor, element, r_ij};
    int64_t longest = 0;
    for (int64_t i = 0; i < num_atoms; i++) longest = std::max(longest, start[i + 1] - start[i]);
    Arena arena{scratch + (64 - reinterpret_cast<uintptr_t>(scratch) % 64) % 64};
    Buffers buffers(arena, num_atoms, longest, threads);
    const size_t needed = arena.used + 64;
    if (needed > size) return needed;
    const int64_t n = num_atoms;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
#ifdef _OPENMP
        const int thread = omp_get_thread_num(), started = omp_get_num_threads();
#else
        const int thread = 0, started = 1;
#endif
        Worker worker(*model, structure, buffers, thread, started, energies, features);
        wait();
        all_forward<0>(worker);
        worker.turn();
        wait();
        all_reverse<LAYERS - 2>(worker);
        for (int64_t k = 3 * n * thread / started; k < 3 * n * (thread + 1) / started; k++) {
            forces[k] = 0;
            for (int t = 0; t < started; t++) forces[k] += buffers.own[t].forces[k];
        }
        if (thread == 0)
            for (int k = 0; k < 9; k++) {
                virial[k] = 0;
                for (int t = 0; t < started; t++) virial[k] += buffers.own[t].virial[k];
            }
    }
    return needed;
}

}  // extern "C"
