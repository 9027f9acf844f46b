import com.sun.management.OperatingSystemMXBean;
import java.lang.management.ManagementFactory;
import java.util.Arrays;
import java.util.Locale;

/** Takes the time between the warm-up and all events, and says so as bench.stack reads it: lines of JSON. */
public final class Watch {
  private static final OperatingSystemMXBean OS =
      (OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean();

  private final long count, warm;
  private final int[] tookMs;
  private long seen, warmAt, fromNs, fromCpuNs, toldNs;
  private int taken;

  public Watch(long count, double warm) {
    this.count = count;
    this.warm = (long) (count * warm);
    this.tookMs = new int[(int) count + 100_000];
  }

  /** So many events, received at these times (ms since 1970), are readable in Redis now. Ends the process after the last. */
  public synchronized void readable(long[] receivedMs, int events) {
    long nowMs = System.currentTimeMillis(), nowNs = System.nanoTime();
    if (fromNs != 0) {
      for (int n = 0; n < events && taken < tookMs.length; n++) tookMs[taken++] = (int) (nowMs - receivedMs[n]);
    }
    seen += events;
    if (fromNs == 0 && seen >= warm) {
      warmAt = seen;
      fromNs = nowNs;
      fromCpuNs = OS.getProcessCpuTime();
      System.out.println("{\"warm\":" + seen + "}");
    } else if (seen >= count) {
      finish(nowNs);
    } else if (nowNs > toldNs + 500_000_000L) {
      toldNs = nowNs;
      System.out.println("{\"done\":" + seen + "}");
    }
  }

  private void finish(long nowNs) {
    double events = Math.max(1, count - warmAt);
    Arrays.sort(tookMs, 0, taken);
    System.out.println(String.format(Locale.ROOT,
        "{\"per_s\":%.1f,\"cpu_us\":%.3f,\"rss_mb\":%.1f,\"p50_ms\":%d,\"p95_ms\":%d,\"p99_ms\":%d}",
        events / ((nowNs - fromNs) / 1e9),
        (OS.getProcessCpuTime() - fromCpuNs) / events / 1e3,
        residentMb(),
        tookMs[taken / 2], tookMs[taken * 95 / 100], tookMs[taken * 99 / 100]));
    System.out.flush();
    Runtime.getRuntime().halt(0);
  }

  private static double residentMb() {
    try {
      String[] parts = java.nio.file.Files.readString(java.nio.file.Path.of("/proc/self/statm")).split(" ");
      return Long.parseLong(parts[1]) * 4096 / 1e6;
    } catch (java.io.IOException error) { // not Linux
      return 0;
    }
  }
}
