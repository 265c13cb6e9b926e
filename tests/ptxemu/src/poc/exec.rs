use crate::{Dim3, Memory, poc::{bail, num::*, parse::*, EmuError, Res}};
use std::collections::BTreeMap;

#[derive(Clone, Debug)] pub struct Options { pub races: bool, pub max_steps: u64, pub seed: u64 }
impl Default for Options { fn default() -> Self { Options { races: true, max_steps: 20_000_000_000, seed: 0 } } }
#[derive(Default, Clone, Debug)] pub struct Stats { pub warp_insts: u64, pub lane_insts: u64, pub mma: u64, pub divergent: u64, pub bank_conflicts: u64, pub gsectors: u64, pub gbytes: u64 }

#[derive(Clone, Copy, PartialEq, Debug)] enum St { Run, Bar(u32, u32), Sync(u32) }
#[derive(Clone, Copy, Debug)] struct Group { pc: u32, mask: u32, st: St }
#[derive(Clone, Copy)] struct Cp { dst: u32, src: u64, n: u32, srcn: u32 }
struct Warp { id: u32, regs: Vec<Lanes>, gr: Vec<Group>, live: u32, wep: u32, cp: Vec<(Vec<Cp>, Vec<Vec<Cp>>)>, local: Vec<u8>, gc: (u64, u64, u64) }
#[derive(Clone, Copy, Default)] struct Shadow { we: u32, wt: u16, wwe: u32, re: u32, rt: u16, rwe: u32, inflight: bool, init: bool }

struct Cta<'a> { k: &'a Kernel, mem: &'a Memory, sh: Vec<u8>, shd: Vec<Shadow>, epoch: u32, opt: &'a Options, st: &'a mut Stats, nthreads: u32, cta: (u32, u32, u32), params: &'a [u8] }

#[inline(always)] fn lanes(m: u32) -> impl Iterator<Item = usize> { let mut m = m; std::iter::from_fn(move || if m == 0 { None } else { let l = m.trailing_zeros(); m &= m - 1; Some(l as usize) }) }
#[inline(always)] fn put(dst: &mut Lanes, v: &Lanes, m: u32) { if m == !0 { *dst = *v } else { for l in lanes(m) { dst[l] = v[l] } } }
unsafe fn rd(p: *const u8, n: u32) -> u64 { match n { 1 => *p as u64, 2 => (p as *const u16).read_unaligned() as u64, 4 => (p as *const u32).read_unaligned() as u64, _ => (p as *const u64).read_unaligned() } }
unsafe fn wr(p: *mut u8, n: u32, v: u64) { match n { 1 => *p = v as u8, 2 => (p as *mut u16).write_unaligned(v as u16), 4 => (p as *mut u32).write_unaligned(v as u32), _ => (p as *mut u64).write_unaligned(v) } }

impl Cta<'_> {
    fn err<T>(&self, w: &Warp, pc: usize, l: usize, m: String) -> Res<T> {
        let i = &self.k.code[pc];
        bail!("{m}\n  kernel {} block {:?} warp {} lane {l} thread {}; PTX line {}{}: {}", self.k.name, self.cta, w.id, w.id as usize * 32 + l, i.line, if i.src > 0 { format!(" (source line {})", i.src) } else { String::new() }, i.text)
    }
    fn sh_read(&mut self, w: &Warp, pc: usize, l: usize, a: u64, n: u32) -> Res<()> {
        if a + n as u64 > self.sh.len() as u64 { return self.err(w, pc, l, format!("shared read out of bounds: [{a:#x},+{n}) of {} bytes", self.sh.len())) }
        if a % n as u64 != 0 { return self.err(w, pc, l, format!("misaligned shared read of {n} bytes at {a:#x}")) }
        if !self.opt.races { return Ok(()) }
        let t = (w.id * 32 + l as u32 + 1) as u16; let (e, we) = (self.epoch, w.wep); let mut bad = None;
        for s in &mut self.shd[a as usize..(a + n as u64) as usize] {
            if !s.init { bad = Some("uninitialised shared read".into()); break }
            if s.inflight { bad = Some("read of a cp.async destination that has not been waited for".into()); break }
            if s.we == e && s.wt != t && !((s.wt - 1) / 32 == (t - 1) / 32 && s.wwe < we) { bad = Some(format!("shared RACE: read after unsynchronised write by thread {}", s.wt - 1)); break }
            if s.re == e && s.rt != t { s.rt = u16::MAX } else { s.rt = t } s.re = e; s.rwe = we;
        }
        match bad { Some(b) => self.err(w, pc, l, format!("{b} at shared {a:#x}")), None => Ok(()) }
    }
    fn sh_write(&mut self, w: &Warp, pc: usize, l: usize, a: u64, n: u32) -> Res<()> {
        if a + n as u64 > self.sh.len() as u64 { return self.err(w, pc, l, format!("shared write out of bounds: [{a:#x},+{n}) of {} bytes", self.sh.len())) }
        if a % n as u64 != 0 { return self.err(w, pc, l, format!("misaligned shared write of {n} bytes at {a:#x}")) }
        if !self.opt.races { return Ok(()) }
        let t = (w.id * 32 + l as u32 + 1) as u16; let (e, we) = (self.epoch, w.wep); let mut bad = None; let wp = |x: u16| (x - 1) / 32;
        for s in &mut self.shd[a as usize..(a + n as u64) as usize] {
            if s.inflight { bad = Some("write to a cp.async destination in flight".into()); break }
            if s.we == e && s.wt != t && !(wp(s.wt) == wp(t) && s.wwe < we) { bad = Some(format!("shared RACE: write after unsynchronised write by thread {}", s.wt - 1)); break }
            if s.re == e && s.rt != t && !(s.rt != u16::MAX && wp(s.rt) == wp(t) && s.rwe < we) { bad = Some(format!("shared RACE: write after unsynchronised read by {}", if s.rt == u16::MAX { "several threads".into() } else { format!("thread {}", s.rt - 1) })); break }
            s.we = e; s.wt = t; s.wwe = we; s.init = true;
        }
        match bad { Some(b) => self.err(w, pc, l, format!("{b} at shared {a:#x}")), None => Ok(()) }
    }
    #[inline(always)]
    fn gl(&self, w: &mut Warp, pc: usize, l: usize, a: u64, n: u32, what: &str) -> Res<*mut u8> {
        if !(a >= w.gc.0 && a + n as u64 <= w.gc.1) {
            match self.mem.find_raw(a) { Some(r) if a + n as u64 <= r.1 => w.gc = r, Some(r) => return self.err(w, pc, l, format!("global {what} out of bounds: {n} bytes at offset {} of a {}-byte allocation", a - r.0, r.1 - r.0)), None => return self.err(w, pc, l, format!("global {what} of {n} bytes at {a:#x}: no allocation")) }
        }
        if a % n as u64 != 0 { return self.err(w, pc, l, format!("misaligned global {what} of {n} bytes at {a:#x}")) }
        Ok((a - w.gc.0 + w.gc.2) as *mut u8)
    }
    fn load(&mut self, w: &mut Warp, pc: usize, l: usize, sp: Space, a: u64, n: u32) -> Res<*const u8> {
        match sp {
            Space::Param => Ok(unsafe { self.params.as_ptr().add(a as usize) }),
            Space::Global | Space::Const => Ok(self.gl(w, pc, l, a, n, "read")? as *const u8),
            Space::Shared => { self.sh_read(w, pc, l, a, n)?; Ok(unsafe { self.sh.as_ptr().add(a as usize) }) }
            Space::Local => { let b = self.k.local_bytes as usize; if a as usize + n as usize > b { return self.err(w, pc, l, "local out of bounds".into()) } Ok(unsafe { w.local.as_ptr().add(l * b + a as usize) }) }
            Space::Generic => if a & SHARED_WIN != 0 { self.load(w, pc, l, Space::Shared, a & !SHARED_WIN, n) } else if a & LOCAL_WIN != 0 { self.load(w, pc, l, Space::Local, a & !LOCAL_WIN, n) } else { self.load(w, pc, l, Space::Global, a, n) },
        }
    }
    fn store(&mut self, w: &mut Warp, pc: usize, l: usize, sp: Space, a: u64, n: u32) -> Res<*mut u8> {
        match sp {
            Space::Global => self.gl(w, pc, l, a, n, "write"),
            Space::Shared => { self.sh_write(w, pc, l, a, n)?; Ok(unsafe { self.sh.as_mut_ptr().add(a as usize) }) }
            Space::Local => { let b = self.k.local_bytes as usize; if a as usize + n as usize > b { return self.err(w, pc, l, "local out of bounds".into()) } Ok(unsafe { w.local.as_mut_ptr().add(l * b + a as usize) }) }
            Space::Generic => if a & SHARED_WIN != 0 { self.store(w, pc, l, Space::Shared, a & !SHARED_WIN, n) } else if a & LOCAL_WIN != 0 { self.store(w, pc, l, Space::Local, a & !LOCAL_WIN, n) } else { self.store(w, pc, l, Space::Global, a, n) },
            _ => self.err(w, pc, l, "store to read-only space".into()),
        }
    }
    fn cp_finish(&mut self, w: &mut Warp, pc: usize, l: usize, keep: usize) -> Res<()> {
        while w.cp[l].1.len() > keep {
            for c in w.cp[l].1.remove(0) {
                for s in &mut self.shd[c.dst as usize..(c.dst + c.n) as usize] { s.inflight = false }
                let p = if c.srcn > 0 { self.gl(w, pc, l, c.src, 1, "cp.async read")? } else { std::ptr::null_mut() };
                if c.srcn > 0 { self.gl(w, pc, l, c.src + c.srcn as u64 - 1, 1, "cp.async read")?; }
                self.sh_write(w, pc, l, c.dst as u64, c.n)?;
                let d = &mut self.sh[c.dst as usize..(c.dst + c.n) as usize]; d.fill(0);
                for i in 0..c.srcn as usize { d[i] = unsafe { *p.add(i) } }
            }
        }
        Ok(())
    }
    /// Runs the warp until every group is blocked or has exited.
    fn run(&mut self, w: &mut Warp) -> Res<bool> {
        let k = self.k; let mut progress = false;
        loop {
            let Some(gi) = w.gr.iter().enumerate().filter(|(_, g)| g.st == St::Run).min_by_key(|(_, g)| g.pc).map(|x| x.0) else {
                // warp-level rendezvous: all named live lanes waiting at the same pc
                for i in 0..w.gr.len() { if let St::Sync(m) = w.gr[i].st { let pc = w.gr[i].pc; let got: u32 = w.gr.iter().filter(|g| g.pc == pc && matches!(g.st, St::Sync(_))).map(|g| g.mask).sum(); if got & m == m & w.live {
                    w.gr.retain(|g| !(g.pc == pc && matches!(g.st, St::Sync(_)))); w.gr.push(Group { pc, mask: got, st: St::Run }); break } } }
                if w.gr.iter().any(|g| g.st == St::Run) { continue } return Ok(progress) };
            let mut g = w.gr.swap_remove(gi); let limit = w.gr.iter().filter(|x| x.st == St::Run).map(|x| x.pc).min().unwrap_or(u32::MAX);
            if g.pc == limit { let j = w.gr.iter().position(|x| x.st == St::Run && x.pc == limit).unwrap(); let o = w.gr.swap_remove(j); g.mask |= o.mask; w.gr.push(g); continue }
            progress = true;
            let div = !w.gr.is_empty();
            loop {
                let pc = g.pc as usize; let i = &k.code[pc]; g.pc += 1;
                let mut m = g.mask;
                if i.guard != NOREG { let p = &w.regs[i.guard as usize]; let mut q = 0u32; for l in 0..32 { q |= ((p[l] & 1) as u32) << l } m &= if i.neg { !q } else { q } }
                self.st.warp_insts += 1; self.st.lane_insts += m.count_ones() as u64; self.st.divergent += div as u64;
                if let Op::Bra(t) = i.op {
                    if m == g.mask { g.pc = t } else if m != 0 { w.gr.push(Group { pc: t, mask: m, st: St::Run }); g.mask &= !m; w.gr.push(g); break }
                    if g.pc >= limit { w.gr.push(g); break } continue
                }
                if m == 0 { if g.pc >= limit { w.gr.push(g); break } continue }
                match &i.op {
                    Op::A1(f, d, a) => { let v = f(&w.regs[*a as usize]); put(&mut w.regs[*d as usize], &v, m) }
                    Op::A2(f, d, a, b) => { let v = f(&w.regs[*a as usize], &w.regs[*b as usize]); put(&mut w.regs[*d as usize], &v, m) }
                    Op::A3(f, d, a, b, c) => { let v = f(&w.regs[*a as usize], &w.regs[*b as usize], &w.regs[*c as usize]); put(&mut w.regs[*d as usize], &v, m) }
                    Op::Unpack { d, a, bits } => { let s = w.regs[*a as usize]; for (j, r) in d.iter().enumerate() { let v: Lanes = std::array::from_fn(|l| s[l] >> (j as u32 * bits) & ((1u64 << bits) - 1)); put(&mut w.regs[*r as usize], &v, m) } }
                    Op::Pack { d, a, bits } => { let mut v = [0; 32]; for (j, r) in a.iter().enumerate() { let s = &w.regs[*r as usize]; for l in 0..32 { v[l] |= s[l] << (j as u32 * bits) } } put(&mut w.regs[*d as usize], &v, m) }
                    Op::Ld { sp, bytes, sx, d, a } => {
                        if *sp == Space::Param && d.len() == 1 { let v = unsafe { rd(self.params.as_ptr().add((w.regs[a.base as usize][0] as i64 + a.off) as usize), *bytes) }; put(&mut w.regs[d[0] as usize], &[v; 32], m) }
                        else { let base = w.regs[a.base as usize];
                            for l in lanes(m) { let ad = base[l].wrapping_add(a.off as u64); let tot = *bytes * d.len() as u32; let p = if tot <= 16 { self.load_chk(w, pc, l, *sp, ad, tot)? } else { return self.err(w, pc, l, "wide load".into()) };
                                for (j, r) in d.iter().enumerate() { let mut v = unsafe { rd(p.add(j * *bytes as usize), *bytes) }; if *sx && *bytes < 8 { let s = 64 - bytes * 8; v = ((v << s) as i64 >> s) as u64; if *bytes <= 4 { v &= 0xffff_ffff } } w.regs[*r as usize][l] = v } } }
                    }
                    Op::St { sp, bytes, s, a } => { let base = w.regs[a.base as usize]; let tot = *bytes * s.len() as u32;
                        for l in lanes(m) { let ad = base[l].wrapping_add(a.off as u64); let p = self.store(w, pc, l, *sp, ad, tot)?; for (j, r) in s.iter().enumerate() { unsafe { wr(p.add(j * *bytes as usize), *bytes, w.regs[*r as usize][l]) } } } }
                    Op::Ret => { for l in lanes(m) { if !w.cp[l].0.is_empty() || !w.cp[l].1.is_empty() { return self.err(w, pc, l, "thread exits with cp.async outstanding".into()) } } w.live &= !m; g.mask &= !m; if g.mask == 0 { break } }
                    Op::Nop => {}
                    Op::Bar { id, cnt, arrive } => {
                        if g.mask != w.live { return self.err(w, pc, lanes(g.mask).next().unwrap(), format!("divergent aligned barrier: mask {:#010x}, live {:#010x}", g.mask, w.live)) }
                        if *arrive { return self.err(w, pc, 0, "bar.arrive not in this PoC".into()) }
                        let l0 = lanes(m).next().unwrap(); let c = if *cnt == NOREG { 0 } else { w.regs[*cnt as usize][l0] as u32 };
                        g.st = St::Bar(w.regs[*id as usize][l0] as u32, c); w.gr.push(g); break
                    }
                    Op::WarpSync(mk) => { let mask = w.regs[*mk as usize][lanes(m).next().unwrap()] as u32 & w.live; if g.mask & mask != mask { g.pc -= 1; g.st = St::Sync(mask); w.gr.push(g); break } w.wep += 1 }
                    Op::Shfl { m: mode, d, p, a, b, c, mask } => {
                        let mk = w.regs[*mask as usize][lanes(m).next().unwrap()] as u32; if mk & m != m { return self.err(w, pc, 0, format!("shfl.sync: executing lanes {m:#x} not in membermask {mk:#x}")) }
                        if m & mk & w.live != mk & w.live { g.pc -= 1; g.st = St::Sync(mk); w.gr.push(g); break }
                        let (av, bv, cv) = (w.regs[*a as usize], w.regs[*b as usize], w.regs[*c as usize]); let mut v = av; let mut pv = [0; 32];
                        for l in lanes(m) { let (bb, cl, sm) = ((bv[l] & 31) as i32, (cv[l] & 31) as i32, (cv[l] >> 8 & 31) as i32); let li = l as i32; let maxl = (li & sm) | (cl & !sm); let minl = li & sm;
                            let (j, ok) = match mode { ShflMode::Up => { let j = li - bb; (j, j >= maxl) } ShflMode::Down => { let j = li + bb; (j, j <= maxl) } ShflMode::Bfly => { let j = li ^ bb; (j, j <= maxl) } ShflMode::Idx => { let j = minl | (bb & !sm); (j, j <= maxl) } };
                            let j = if ok { j } else { li }; if m >> j & 1 == 0 { return self.err(w, pc, l, format!("shfl.sync reads inactive lane {j}")) } v[l] = av[j as usize]; pv[l] = ok as u64 }
                        put(&mut w.regs[*d as usize], &v, m); if *p != NOREG { put(&mut w.regs[*p as usize], &pv, m) }
                    }
                    Op::Vote { kind, d, p, mask } => { let mk = w.regs[*mask as usize][lanes(m).next().unwrap()] as u32; if m & mk & w.live != mk & w.live { g.pc -= 1; g.st = St::Sync(mk); w.gr.push(g); break }
                        let pv = &w.regs[*p as usize]; let mut q = 0u32; for l in lanes(m) { q |= ((pv[l] & 1) as u32) << l } let v = match kind { 0 => q as u64, 1 => (q != 0) as u64, 2 => (q == m) as u64, _ => (q == 0 || q == m) as u64 }; put(&mut w.regs[*d as usize], &[v; 32], m) }
                    Op::ActiveMask(d) => put(&mut w.regs[*d as usize], &[m as u64; 32], m),
                    Op::CpAsync { dst, src, n, srcn } => { for l in lanes(m) {
                            let da = w.regs[dst.base as usize][l].wrapping_add(dst.off as u64) & 0xffff_ffff; let sa = w.regs[src.base as usize][l].wrapping_add(src.off as u64); let sn = if *srcn == NOREG { *n } else { (w.regs[*srcn as usize][l] as u32).min(*n) };
                            if sa % *n as u64 != 0 { return self.err(w, pc, l, format!("misaligned cp.async source {sa:#x} for {n} bytes")) }
                            if da + *n as u64 > self.sh.len() as u64 || da % *n as u64 != 0 { return self.err(w, pc, l, format!("bad cp.async destination {da:#x}")) }
                            if sn > 0 { self.gl(w, pc, l, sa, 1, "cp.async read")?; self.gl(w, pc, l, sa + sn as u64 - 1, 1, "cp.async read")?; }
                            // the write may land at any time from here: claim the bytes now (catches WAR), mark in flight, and poison them
                            self.sh_write(w, pc, l, da, *n)?; for s in &mut self.shd[da as usize..da as usize + *n as usize] { s.inflight = true }
                            self.sh[da as usize..da as usize + *n as usize].fill(0xff);
                            w.cp[l].0.push(Cp { dst: da as u32, src: sa, n: *n, srcn: sn }) } }
                    Op::CpCommit => for l in lanes(m) { let o = std::mem::take(&mut w.cp[l].0); w.cp[l].1.push(o) },
                    Op::CpWait(n) => for l in lanes(m) { let keep = w.regs[*n as usize][l] as usize; self.cp_finish(w, pc, l, keep)? },
                    Op::CpWaitAll => for l in lanes(m) { let o = std::mem::take(&mut w.cp[l].0); w.cp[l].1.push(o); self.cp_finish(w, pc, l, 0)? },
                    Op::LdMatrix { d, a, trans } => {
                        if m != !0 { return self.err(w, pc, 0, format!("ldmatrix with inactive lanes (mask {m:#x})")) }
                        let base = w.regs[a.base as usize];
                        for (j, r) in d.iter().enumerate() { let mut mat = [[0u16; 8]; 8];
                            for row in 0..8 { let l = j * 8 + row; let ad = base[l].wrapping_add(a.off as u64) & 0xffff_ffff; self.sh_read(w, pc, l, ad, 16)?; for c in 0..8 { mat[row][c] = unsafe { rd(self.sh.as_ptr().add(ad as usize + 2 * c), 2) as u16 } } }
                            for l in 0..32 { let (g_, q) = (l / 4, (l % 4) * 2); let (lo, hi) = if *trans { (mat[q][g_], mat[q + 1][g_]) } else { (mat[g_][q], mat[g_][q + 1]) }; w.regs[*r as usize][l] = lo as u64 | (hi as u64) << 16 } }
                    }
                    Op::Mma { d, a, b, c, ty, k, f16acc } => {
                        if m != !0 { return self.err(w, pc, 0, format!("mma.sync with inactive lanes (mask {m:#x})")) } self.st.mma += 1;
                        let kk = *k as usize; let (mut am, mut bm, mut cm) = ([[0f32; 16]; 16], [[0f32; 8]; 16], [[0f32; 8]; 16]);
                        let cv = |x: u64| match ty { MmaTy::F16 => h2f(x as u16), MmaTy::Bf16 => bf2f(x as u16), MmaTy::Tf32 => tf32(x as u32) };
                        for l in 0..32 { let (g_, q) = (l / 4, l % 4);
                            if *ty == MmaTy::Tf32 { for (j, r) in a.iter().enumerate() { am[g_ + 8 * (j & 1)][q + 4 * (j >> 1)] = cv(w.regs[*r as usize][l]) } for (j, r) in b.iter().enumerate() { bm[q + 4 * j][g_] = cv(w.regs[*r as usize][l]) } }
                            else { for (j, r) in a.iter().enumerate() { let v = w.regs[*r as usize][l]; let (row, col) = (g_ + 8 * (j & 1), q * 2 + 8 * (j >> 1)); am[row][col] = cv(v & 0xffff); am[row][col + 1] = cv(v >> 16) }
                                for (j, r) in b.iter().enumerate() { let v = w.regs[*r as usize][l]; bm[q * 2 + 8 * j][g_] = cv(v & 0xffff); bm[q * 2 + 1 + 8 * j][g_] = cv(v >> 16) } }
                            if *f16acc { for (j, r) in c.iter().enumerate() { let v = w.regs[*r as usize][l]; cm[g_ + 8 * j][q * 2] = h2f(v as u16); cm[g_ + 8 * j][q * 2 + 1] = h2f((v >> 16) as u16) } }
                            else { for (j, r) in c.iter().enumerate() { cm[g_ + 8 * (j >> 1)][q * 2 + (j & 1)] = f32::from_bits(w.regs[*r as usize][l] as u32) } } }
                        let mut o = [[0f32; 8]; 16];
                        for r in 0..16 { let mut s = [0f64; 8]; for n in 0..8 { s[n] = cm[r][n] as f64 } for x in 0..kk { let av = am[r][x] as f64; for n in 0..8 { s[n] += av * bm[x][n] as f64 } } for n in 0..8 { o[r][n] = s[n] as f32 } }
                        for l in 0..32 { let (g_, q) = (l / 4, l % 4);
                            if *f16acc { for (j, r) in d.iter().enumerate() { w.regs[*r as usize][l] = f2h(o[g_ + 8 * j][q * 2]) as u64 | (f2h(o[g_ + 8 * j][q * 2 + 1]) as u64) << 16 } }
                            else { for (j, r) in d.iter().enumerate() { w.regs[*r as usize][l] = o[g_ + 8 * (j >> 1)][q * 2 + (j & 1)].to_bits() as u64 } } }
                    }
                    Op::Atomic { op, ty, sp, d, a, b, c } => { let n = ty.bits / 8;
                        for l in lanes(m) { let ad = w.regs[a.base as usize][l].wrapping_add(a.off as u64); let (sp, ad) = if *sp == Space::Generic && ad & SHARED_WIN != 0 { (Space::Shared, ad & !SHARED_WIN) } else { (*sp, ad) };
                            let p = if sp == Space::Shared { if ad + n as u64 > self.sh.len() as u64 { return self.err(w, pc, l, "shared atomic out of bounds".into()) } unsafe { self.sh.as_mut_ptr().add(ad as usize) } } else { self.gl(w, pc, l, ad, n, "atomic")? };
                            let old = unsafe { rd(p, n) }; let x = w.regs[*b as usize][l]; let s = 64 - ty.bits; let sg = |v: u64| (v << s) as i64 >> s;
                            let new = match op { Atom::Add => match (ty.k, ty.bits) { (b'f', 32) => (f32::from_bits(old as u32) + f32::from_bits(x as u32)).to_bits() as u64, (b'f', 64) => (f64::from_bits(old) + f64::from_bits(x)).to_bits(), (b'h' | b'w', _) => return self.err(w, pc, l, "f16 atomics not in this PoC".into()), _ => old.wrapping_add(x) },
                                Atom::Min => if ty.k == b's' { if sg(x) < sg(old) { x } else { old } } else { old.min(x) }, Atom::Max => if ty.k == b's' { if sg(x) > sg(old) { x } else { old } } else { old.max(x) },
                                Atom::And => old & x, Atom::Or => old | x, Atom::Xor => old ^ x, Atom::Exch => x, Atom::Cas => if old == x { w.regs[*c as usize][l] } else { old } };
                            unsafe { wr(p, n, new) } w.regs[*d as usize][l] = old } }
                    Op::Bra(_) => unreachable!(),
                }
                if g.pc >= limit { w.gr.push(g); break }
            }
            if self.st.warp_insts > self.opt.max_steps { bail!("kernel {}: step limit reached (endless loop?)", k.name) }
        }
    }
    fn load_chk(&mut self, w: &mut Warp, pc: usize, l: usize, sp: Space, a: u64, n: u32) -> Res<*const u8> { self.load(w, pc, l, sp, a, n) }
}

pub fn launch(k: &Kernel, grid: Dim3, block: Dim3, dyn_smem: u32, params: &[u8], mem: &Memory, opt: &Options) -> Res<Stats> {
    let nt = block.count() as u32; let mut stats = Stats::default();
    if nt == 0 || nt > 1024 || nt > k.maxntid || grid.count() == 0 { bail!("invalid launch configuration for {}: block {block:?} (maxntid {}), grid {grid:?}", k.name, k.maxntid) }
    if k.shared_bytes + dyn_smem > 227 * 1024 { bail!("too much shared memory: {}", k.shared_bytes + dyn_smem) }
    if params.len() < k.param_bytes { bail!("kernel {} needs {} parameter bytes, got {}", k.name, k.param_bytes, params.len()) }
    let shn = (k.shared_bytes + dyn_smem) as usize; let nw = nt.div_ceil(32);
    let mut warps: Vec<Warp> = (0..nw).map(|id| Warp { id, regs: vec![[0; 32]; k.nregs as usize], gr: vec![], live: 0, wep: 0, cp: vec![Default::default(); 32], local: vec![0xff; k.local_bytes as usize * 32], gc: (1, 0, 0) }).collect();
    for w in &mut warps { for (r, v) in &k.consts { w.regs[*r as usize] = [*v; 32] }
        for (r, s) in &k.specs { let id = w.id; let t = |l: usize| id * 32 + l as u32; use Spec::*;
            w.regs[*r as usize] = std::array::from_fn(|l| (match s { TidX => t(l) % block.x, TidY => t(l) / block.x % block.y, TidZ => t(l) / block.x / block.y, NtidX => block.x, NtidY => block.y, NtidZ => block.z, NctaX => grid.x, NctaY => grid.y, NctaZ => grid.z,
                Lane => l as u32, WarpId => id, NWarp => nw, DynSmem => dyn_smem, MaskLt => (1u64 << l) as u32 - 1, MaskLe => ((2u64 << l) - 1) as u32, MaskEq => 1 << l, MaskGt => !(((2u64 << l) - 1) as u32), MaskGe => !((1u64 << l) as u32 - 1), _ => 0 }) as u64) } }
    let mut cta = Cta { k, mem, sh: vec![0xff; shn], shd: vec![Shadow::default(); shn], epoch: 1, opt, st: &mut stats, nthreads: nt, cta: (0, 0, 0), params };
    let mut rng = opt.seed.wrapping_mul(0x9E3779B97F4A7C15) | 1;
    for z in 0..grid.z { for y in 0..grid.y { for x in 0..grid.x {
        cta.cta = (x, y, z); cta.sh.fill(0xff); if opt.races { cta.shd.fill(Shadow::default()) } cta.epoch = 1;
        for w in &mut warps { let rem = nt - w.id * 32; w.live = if rem >= 32 { !0 } else { (1 << rem) - 1 }; w.gr.clear(); w.gr.push(Group { pc: 0, mask: w.live, st: St::Run }); w.wep = 1;
            for (r, s) in &k.specs { let v = match s { Spec::CtaX => x, Spec::CtaY => y, Spec::CtaZ => z, _ => continue }; w.regs[*r as usize] = [v as u64; 32] } }
        loop {
            let off = if opt.seed != 0 { rng ^= rng << 13; rng ^= rng >> 7; rng ^= rng << 17; rng as usize } else { 0 };
            for i in 0..warps.len() { let j = (i + off) % warps.len(); cta.run(&mut warps[j])?; }
            if warps.iter().all(|w| w.live == 0) { break }
            // barrier release
            let live: u32 = warps.iter().map(|w| w.live.count_ones()).sum(); let mut released = false;
            for id in 0..16 {
                let (mut n, mut c) = (0, 0); for w in &warps { for g in &w.gr { if let St::Bar(i, k) = g.st { if i == id { n += g.mask.count_ones(); c = k } } } }
                if n > 0 && n >= if c == 0 { live } else { c } { released = true; if n == live { cta.epoch += 1 } for w in &mut warps { for g in &mut w.gr { if matches!(g.st, St::Bar(i, _) if i == id) { g.st = St::Run } } } }
            }
            if !released { bail!("kernel {} block {:?}: DEADLOCK: {} of {} threads alive, states {:?}", k.name, cta.cta, live, cta.nthreads, warps.iter().map(|w| w.gr.iter().map(|g| (g.st, g.mask, cta.k.code[g.pc as usize].line)).collect::<Vec<_>>()).collect::<Vec<_>>()) }
        }
    } } }
    
    Ok(stats)
}
