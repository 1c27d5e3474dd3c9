//! The dashboard and the alerts, against a real Prometheus that has scraped both daemons.
//!
//! ```text
//!  client0, prometheus --- wire --- server
//! ```
#![expect(clippy::unwrap_used, reason = "a failing helper fails its test")]

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use lostlove_tests::lab::{Host, SERVER_V4, quoted, wire_v4};
use lostlove_tests::{Lab, await_some, await_true, skip};
use serde_json::Value;
use tempfile::TempDir;

const METRICS_PORT: u16 = 9100;
const PROMETHEUS_PORT: u16 = 9090;
/// What Grafana puts in the place of its variables.
const VARIABLES: [(&str, &str); 4] = [
    ("$instance", ".*"),
    ("$peer", ".*"),
    ("$__rate_interval", "1m"),
    ("$__range", "1m"),
];

fn deployed(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../deploy")
        .join(path)
}

fn read(path: &str) -> String {
    fs::read_to_string(deployed(path)).unwrap()
}

/// Whether Debian's package prometheus is installed.
fn has_prometheus() -> bool {
    let is_there = |program| Command::new(program).arg("--version").output().is_ok();
    let found = is_there("promtool") && is_there("prometheus");
    if !found {
        skip("promtool and prometheus (of Debian's package prometheus) are not installed");
    }
    found
}

/// What stands behind a key of a YAML file, at whatever depth.
fn values<'t>(text: &'t str, key: &str) -> Vec<&'t str> {
    let lines = text
        .lines()
        .map(|line| line.trim_start().trim_start_matches("- "));
    lines.filter_map(|line| line.strip_prefix(key)).collect()
}

fn promtool(arguments: &[&str]) -> Output {
    let directory = deployed("prometheus");
    let mut command = Command::new("promtool");
    command
        .args(arguments)
        .current_dir(directory)
        .output()
        .unwrap()
}

#[test]
fn every_alert_fires_in_a_test_and_none_for_a_healthy_daemon() {
    if !has_prometheus() {
        return;
    }
    let (alerts, tests) = (
        read("prometheus/alerts.yml"),
        read("prometheus/alerts_test.yml"),
    );
    let names: BTreeSet<_> = values(&alerts, "alert: ").into_iter().collect();
    // A test of an alert that is not there, or of one that fires nowhere, would pass.
    let tested: BTreeSet<_> = values(&tests, "alertname: ").into_iter().collect();
    assert_eq!(names, tested);
    let firing = tests
        .matches("exp_alerts:\n          - exp_labels:")
        .count();
    assert_eq!(firing, names.len());
    for arguments in [
        ["check", "rules", "alerts.yml"],
        ["test", "rules", "alerts_test.yml"],
    ] {
        let output = promtool(&arguments);
        assert!(output.status.success(), "{output:?}");
    }
}

/// What panels and variables of the dashboard ask for.
fn dashboard() -> Vec<String> {
    let dashboard: Value = serde_json::from_str(&read("grafana/lostlove.json")).unwrap();
    let list = |value: &Value| value.as_array().unwrap().clone();
    let targets = list(&dashboard["panels"])
        .into_iter()
        .filter(|panel| panel["type"] != "row")
        .flat_map(|panel| list(&panel["targets"]))
        .map(|target| target["expr"].as_str().unwrap().to_owned());
    let variables = list(&dashboard["templating"]["list"])
        .into_iter()
        .filter_map(|variable| Some(variable["query"]["query"].as_str()?.to_owned()))
        .map(|query| {
            let inner = query.strip_prefix("label_values(").unwrap();
            let (series, label) = inner.strip_suffix(')').unwrap().rsplit_once(", ").unwrap();
            format!("count by ({label}) ({series})")
        });
    let all = targets.chain(variables).map(|expression| {
        let replace = |text: String, (name, value): &(&str, &str)| text.replace(name, value);
        let expression = VARIABLES.iter().fold(expression, replace);
        assert!(!expression.contains('$'), "{expression}");
        expression
    });
    all.collect()
}

/// What the alerts compare.
fn alerts() -> Vec<String> {
    let text = read("prometheus/alerts.yml");
    let expressions = values(&text, "expr: ").into_iter().map(|expression| {
        let comparison = expression
            .rsplit_once(" > ")
            .or(expression.rsplit_once(" == "));
        comparison.unwrap().0.to_owned()
    });
    expressions.collect()
}

#[test]
fn every_expression_of_dashboard_and_alerts_has_an_answer_after_one_session() {
    if !has_prometheus() {
        return;
    }
    let Some(lab) = Lab::new(1) else { return };
    let mut settings = lab.server_settings();
    settings.set("monitoring.metrics_address", quoted(wire_v4(0)));
    let _server = lab.start_server(&settings);
    let _client = lab.start_client(0, &lab.client_settings(0));
    let host = &lab.clients[0];
    host.await_ping(SERVER_V4);
    let prometheus = Prometheus::start(host);
    for expression in dashboard().into_iter().chain(alerts()) {
        await_true(&expression, || prometheus.has_answer(&expression));
    }
    let of_both = prometheus.query("count(lostlove_build_info)");
    assert_eq!(of_both["data"]["result"][0]["value"][1], "2", "{of_both}");
}

/// A Prometheus on a host, which scrapes it and the server every second. It is killed on drop.
struct Prometheus<'a> {
    host: &'a Host,
    child: Child,
    _data: TempDir,
}

impl<'a> Prometheus<'a> {
    fn start(host: &'a Host) -> Self {
        let data = TempDir::new().unwrap();
        let config = data.path().join("prometheus.yml");
        let (rules, server) = (deployed("prometheus/alerts.yml"), wire_v4(0));
        let text = format!(
            "global:\n  scrape_interval: 1s\n  scrape_timeout: 1s\n  evaluation_interval: 1s\n\
             rule_files: ['{}']\n\
             scrape_configs:\n  - job_name: lostlove\n    static_configs:\n      \
             - targets: ['127.0.0.1:{METRICS_PORT}', '{server}:{METRICS_PORT}']\n",
            fs::canonicalize(rules).unwrap().display()
        );
        fs::write(&config, text).unwrap();
        let mut command = host.netns.command("prometheus");
        command
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", data.path().display()))
            .arg(format!("--web.listen-address=127.0.0.1:{PROMETHEUS_PORT}"))
            .arg("--log.level=error")
            .stdout(Stdio::null());
        let prometheus = Self {
            host,
            child: command.spawn().unwrap(),
            _data: data,
        };
        await_some("Prometheus to be ready", || {
            prometheus
                .get("/-/ready")
                .ok()
                .filter(|it| it.contains(" 200 "))
        });
        prometheus
    }

    /// Whether an expression has a value by now; an expression that is wrong fails.
    fn has_answer(&self, expression: &str) -> bool {
        let answer = self.query(expression);
        assert_eq!(answer["status"], "success", "{expression}: {answer}");
        let result = answer["data"]["result"].as_array();
        result.is_some_and(|result| !result.is_empty())
    }

    fn query(&self, expression: &str) -> Value {
        let encoded: String = expression
            .bytes()
            .map(|byte| format!("%{byte:02x}"))
            .collect();
        let text = self.get(&format!("/api/v1/query?query={encoded}")).unwrap();
        let (_, body) = text.split_once("\r\n\r\n").unwrap();
        serde_json::from_str(body).unwrap()
    }

    fn get(&self, path: &str) -> io::Result<String> {
        let ask = || {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, PROMETHEUS_PORT))?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        };
        self.host.netns.run(ask).unwrap()
    }
}

impl Drop for Prometheus<'_> {
    fn drop(&mut self) {
        // It fails where it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
