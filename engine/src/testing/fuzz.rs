//! [`Fuzz`]: what may come from outside, damaged: bytes and texts of a corpus, changed at random from a fixed
//! seed. Tests hand it to whatever reads such input; `CONTRIBUTING.md` says how to run more cases.

/// Values at which lengths and numbers go wrong.
const EDGES: [u64; 12] = [
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    i64::MAX as u64,
    i64::MAX as u64 + 1,
    u64::MAX,
];

/// How many cases a test runs: what `LITTORAL_FUZZ_CASES` says, or `usual`.
pub fn cases(usual: usize) -> usize {
    std::env::var("LITTORAL_FUZZ_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(usual)
}

/// Set in the process that [`within_memory`] begins.
const ALONE: &str = "LITTORAL_FUZZ_ALONE";

/// Runs `check` in a process of its own, this test binary begun for the one test: what a binary's other tests
/// reserve meanwhile is not the check's. `test` is the test's whole path, its crate included.
///
/// # Panics
/// If the check panics, if it reserves `most` bytes or more (where the system tells), or if there is no such
/// test.
pub fn within_memory(test: &str, most: u64, check: impl FnOnce()) {
    if std::env::var_os(ALONE).is_none() {
        let (_, path) = test.split_once("::").expect("a path begins with its crate");
        let binary = std::env::current_exe().expect("a test knows its binary");
        let run =
            std::process::Command::new(binary).args([path, "--exact"]).env(ALONE, "1").output();
        let run = run.expect("a test binary can be begun again");
        let said = String::from_utf8_lossy(&run.stdout);
        let passed = run.status.success() && said.contains("1 passed");
        assert!(passed, "{path}: {}\n{said}{}", run.status, String::from_utf8_lossy(&run.stderr));
        return;
    }
    let before = peak_memory();
    check();
    if let (Some(before), Some(after)) = (before, peak_memory()) {
        assert!(after - before < most, "{} bytes were reserved", after - before);
    }
}

/// The most memory that this process has reserved at once, in bytes, where the system tells.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmPeak:"))?;
    Some(line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? << 10)
}

/// A source of damage.
#[derive(Clone, Debug)]
pub struct Fuzz {
    state: u64,
}

impl Fuzz {
    /// The damage of a seed.
    pub const fn new(seed: u64) -> Self {
        Self { state: seed.wrapping_mul(2).wrapping_add(0x9e37_79b9_7f4a_7c15) | 1 }
    }

    /// 64 random bits.
    pub const fn word(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `bound`; 0 if there is none.
    pub fn below(&mut self, bound: usize) -> usize {
        let wide = u128::from(self.word()) * bound as u128;
        usize::try_from(wide >> 64).unwrap_or(0)
    }

    /// One of these.
    ///
    /// # Panics
    /// If there are none.
    pub fn pick<'t, T>(&mut self, of: &'t [T]) -> &'t T {
        &of[self.below(of.len())]
    }

    /// A piece of the corpus, changed in one to eight places.
    pub fn bytes(&mut self, corpus: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = self.pick(corpus).clone();
        for _ in 0..=self.below(8) {
            self.damage(&mut bytes, corpus);
        }
        bytes
    }

    fn damage(&mut self, bytes: &mut Vec<u8>, corpus: &[Vec<u8>]) {
        let at = self.below(bytes.len() + 1);
        let until = at + self.below((bytes.len() - at).min(40) + 1);
        match self.below(11) {
            0 | 1 => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << self.below(8);
                }
            }
            2 => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = self.word().to_le_bytes()[0];
                }
            }
            // A number of some width, and of either order of bytes.
            3 | 4 => {
                let edge = *self.pick(&EDGES);
                let width = *self.pick(&[1, 2, 4, 8]);
                let number = match self.below(2) {
                    0 => edge.to_le_bytes()[..width].to_vec(),
                    _ => edge.to_be_bytes()[8 - width..].to_vec(),
                };
                let end = (at + width).min(bytes.len());
                bytes.splice(at..end, number);
            }
            // One of LEB128.
            5 => {
                let mut edge = *self.pick(&EDGES);
                let mut number = Vec::new();
                while edge >= 0x80 {
                    number.push(edge.to_le_bytes()[0] | 0x80);
                    edge >>= 7;
                }
                number.push(edge.to_le_bytes()[0]);
                let end = (at + self.below(3)).min(bytes.len());
                bytes.splice(at..end, number);
            }
            6 => drop(bytes.drain(at..until)),
            7 => {
                let again = bytes[at..until].to_vec();
                bytes.splice(at..at, again);
            }
            8 => bytes.truncate(at),
            // The rest of another piece.
            9 => {
                let other = self.pick(corpus);
                let from = self.below(other.len() + 1);
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
            _ => {
                let more = self.below(9);
                bytes.splice(
                    at..at,
                    (0..more).map(|_| self.word().to_le_bytes()[0]).collect::<Vec<_>>(),
                );
            }
        }
    }

    /// A text of the corpus with one to six of its words and signs changed, left out, doubled, or put
    /// elsewhere; some of the new ones are `words`.
    pub fn text(&mut self, corpus: &[String], words: &[&str]) -> String {
        let text = self.pick(corpus).clone();
        let mut parts = parts_of(&text);
        for _ in 0..=self.below(6) {
            let at = self.below(parts.len() + 1);
            let new = match self.below(4) {
                0 => parts.get(self.below(parts.len())).cloned().unwrap_or_default(),
                1 => {
                    let other = parts_of(self.pick::<String>(corpus));
                    other.get(self.below(other.len())).cloned().unwrap_or_default()
                }
                2 => self.pick(&EDGES).to_string(),
                _ => (*self.pick(words)).to_owned(),
            };
            match self.below(4) {
                0 => parts.insert(at, new),
                1 if at < parts.len() => drop(parts.remove(at)),
                _ if at < parts.len() => parts[at] = new,
                _ => parts.push(new),
            }
        }
        parts.concat()
    }
}

/// Words, and what stands between them sign by sign.
fn parts_of(text: &str) -> Vec<String> {
    let mut parts: Vec<String> = Vec::new();
    let mut in_word = false;
    for sign in text.chars() {
        let of_word = sign.is_alphanumeric() || sign == '_';
        match parts.last_mut() {
            Some(word) if in_word && of_word => word.push(sign),
            _ => parts.push(sign.to_string()),
        }
        in_word = of_word;
    }
    parts
}
