//! Runs simulated worlds: one, so many, as many as fit some hours, or every short workload. Called by `scripts/sim`.
//!
//! Invariant: what fails is named with the line that runs it again, and the exit code is 1 if anything did.

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::Parser;
use sealdrive_tests::sim::bounded::{self, Ground, Workload};
use sealdrive_tests::sim::lanes::side_by_side;
use sealdrive_tests::sim::world::{Report, reproduce, run};

/// Simulated worlds of client and server.
#[derive(Parser)]
struct Args {
    /// First seed.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// How many seeds.
    #[arg(long, default_value_t = 1, conflicts_with = "hours")]
    seeds: u64,
    /// Run for so many hours instead.
    #[arg(long)]
    hours: Option<f64>,
    /// Instead: every workload of up to so many steps, with a power cut at every step of its fsync and after it.
    #[arg(long)]
    enumerate: Option<usize>,
    /// Of those only the K-th of N equal parts, as `K/N`: hours on one machine are less on several, or later.
    #[arg(long, requires = "enumerate", value_parser = part)]
    part: Option<(usize, usize)>,
    /// Instead: one of these workloads, as a failure says.
    #[arg(long)]
    workload: Option<String>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let good = match (&args.workload, args.enumerate) {
        (Some(name), _) => match Workload::parse(name) {
            Some(workload) => enumerate(&[workload]),
            None => {
                eprintln!("{name} is no workload");
                false
            }
        },
        (None, Some(longest)) => {
            let all = Workload::all(longest);
            let (k, n) = args.part.unwrap_or((1, 1));
            enumerate(all.chunks(all.len().div_ceil(n)).nth(k - 1).unwrap_or(&[]))
        }
        (None, None) => seeds(&args),
    };
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn part(text: &str) -> Result<(usize, usize), String> {
    let parsed = text
        .split_once('/')
        .and_then(|(k, n)| Some((k.parse().ok()?, n.parse().ok()?)));
    let inside = parsed.filter(|(k, n)| (1..=*n).contains(k));
    inside.ok_or_else(|| "K/N is wanted, such as 2/8, K from 1 to N".to_owned())
}

fn enumerate(workloads: &[Workload]) -> bool {
    let began = Instant::now();
    let ground = match Ground::lay() {
        Ok(ground) => ground,
        Err(trouble) => {
            println!("no ground to stand on: {trouble}");
            return false;
        }
    };
    println!("{} workloads", workloads.len());
    let (tried, failed) = bounded::try_all(&ground, workloads, |done, failed| {
        if done % 1000 == 0 {
            println!("{done} worlds, {failed} failed, {:.0?}", began.elapsed());
        }
    });
    for (workload, trouble) in &failed {
        println!(
            "{} FAILED: {trouble}\nagain: {}",
            workload.name(),
            workload.reproduce()
        );
    }
    println!(
        "{tried:#?}\n{} of {} worlds failed, {:.0?}",
        failed.len(),
        workloads.len(),
        began.elapsed()
    );
    failed.is_empty()
}

fn seeds(args: &Args) -> bool {
    let began = Instant::now();
    let time = args
        .hours
        .map(|hours| Duration::from_secs_f64(hours * 3600.0));
    let one = args.hours.is_none() && args.seeds == 1;
    let (next, done) = (AtomicU64::new(0), Mutex::new((Report::default(), 0, 0)));
    side_by_side(|| {
        loop {
            let number = next.fetch_add(1, Ordering::SeqCst);
            let enough = match time {
                Some(time) => began.elapsed() >= time,
                None => number >= args.seeds,
            };
            if enough {
                return;
            }
            let seed = args.seed + number;
            let outcome = run(seed);
            let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
            let (sum, worlds, failed) = &mut *done;
            *worlds += 1;
            match &outcome.result {
                Ok(report) => sum.add(report),
                Err(trouble) => {
                    *failed += 1;
                    println!("seed {seed} FAILED: {trouble}\nagain: {}", reproduce(seed));
                }
            }
            if one {
                let digest = blake3::Hash::from_bytes(outcome.digest);
                println!(
                    "seed {seed}: digest {digest}, {} decisions, {:?} of virtual time",
                    outcome.decisions, outcome.elapsed
                );
            }
            if *worlds % 500 == 0 {
                println!("{worlds} worlds, {failed} failed, {:.0?}", began.elapsed());
            }
        }
    });
    let (sum, worlds, failed) = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    println!("{sum:#?}");
    println!("{worlds} worlds, {failed} failed, {:.0?}", began.elapsed());
    failed == 0
}
