//! The bench: `scripts/bench` builds it in release and runs it. Prints progress on stderr and a markdown table on
//! stdout.

use std::path::PathBuf;
use std::process::Command;

use clap::Parser;
use sealdrive_tests::bench::subject::Subject;
use sealdrive_tests::bench::table::Samples;
use sealdrive_tests::bench::{Group, Plan, measure, recover};

/// Measure sealdrive beside the native file system and gocryptfs, in one run.
#[derive(Parser)]
struct Arguments {
    /// Where everything is written; one disk for all.
    #[arg(long)]
    place: PathBuf,
    /// A source tree to copy in and out.
    #[arg(long)]
    tree: Option<PathBuf>,
    /// Small sizes: minutes instead of an hour, and figures that mean less.
    #[arg(long)]
    quick: bool,
    /// Leave our own product out, to see what the machine does.
    #[arg(long)]
    peers_only: bool,
    /// Rounds.
    #[arg(long)]
    rounds: Option<usize>,
    /// These groups alone: may be given again, or several with commas between.
    #[arg(long, value_enum, value_name = "GROUP", value_delimiter = ',')]
    only: Vec<Group>,
}

fn main() {
    let arguments = Arguments::parse();
    let quick = arguments.quick;
    let pick = |quick_value, full| if quick { quick_value } else { full };
    let plan = Plan {
        only: arguments.only,
        rounds: arguments.rounds.unwrap_or(pick(1, 3)),
        stream_mib: pick(64, 512),
        small_files: pick(2000, 10_000),
        random_ops: pick(500, 4000),
        fsyncs: pick(50, 500),
        transactions: pick(100, 1000),
        large_mib: pick(128, 1024),
        tree: arguments.tree,
        recovery_files: pick(20_000, 1_000_000),
        recovery_mib: pick(64, 1024),
        recovery_changes: pick(400, 60_000),
    };
    let place = tempfile::Builder::new()
        .prefix("bench-")
        .tempdir_in(&arguments.place)
        .expect("--place is a directory");
    let mut subjects = vec![Subject::native(place.path())];
    subjects.extend(Subject::gocryptfs(place.path()));
    if !arguments.peers_only {
        subjects.push(Subject::sealdrive(place.path()));
    }
    let mut samples = Samples::default();
    measure(&plan, &mut subjects, &mut samples);
    let names: Vec<_> = subjects.iter().map(Subject::name).collect();
    drop(subjects);
    if !arguments.peers_only {
        recover(&plan, place.path(), &mut samples);
    }
    println!("{}", heading(&plan));
    println!("{}", samples.markdown(&names, "sealdrive"));
}

/// What a reader needs to judge the figures.
fn heading(plan: &Plan) -> String {
    let said = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().ok();
        output
            .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
            .unwrap_or_default()
    };
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .unwrap_or_default();
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    format!(
        "{} cores,{}, Linux {}, {}; {} rounds, medians; load average at the end {}. Last columns: how many times \
         better ours is.\n",
        std::thread::available_parallelism().map_or(0, usize::from),
        model.trim_start_matches([' ', '\t', ':']).to_owned() + " ",
        said("uname", &["-r"]),
        said("gocryptfs", &["-version"])
            .split(';')
            .next()
            .unwrap_or_default(),
        plan.rounds,
        load.split(' ').take(3).collect::<Vec<_>>().join(" "),
    )
}
