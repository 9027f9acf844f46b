import java.nio.charset.StandardCharsets;
import java.util.HashMap;
import java.util.Map;
import redis.clients.jedis.Jedis;

/**
 * Writes changed customers to Redis in one MSET: when so many are waiting, or so long after the first.
 *
 * <p>One thread's own. A customer who changes again meanwhile is written once.
 */
public final class RedisWriter {
  private static final int MOST = 2000;

  private final Jedis redis;
  private final Watch watch;
  private final String prefix;
  private final long lingerNs;
  private final Map<String, Customer> dirty = new HashMap<>();
  private long[] receivedMs = new long[4096];
  private int events;
  private long sinceNs;

  public RedisWriter(String host, int port, String prefix, long lingerMs, Watch watch) {
    this.redis = new Jedis(host, port);
    this.prefix = prefix;
    this.lingerNs = lingerMs * 1_000_000L;
    this.watch = watch;
  }

  public void changed(String key, Customer customer, long received) {
    if (events == receivedMs.length) receivedMs = java.util.Arrays.copyOf(receivedMs, events * 2);
    if (events == 0) sinceNs = System.nanoTime();
    receivedMs[events++] = received;
    dirty.put(key, customer);
    if (dirty.size() >= MOST) flush();
    else flushIfDue();
  }

  public boolean isEmpty() {
    return events == 0;
  }

  public void flushIfDue() {
    if (events > 0 && System.nanoTime() - sinceNs >= lingerNs) flush();
  }

  public void flush() {
    if (events == 0) return;
    byte[][] pairs = new byte[dirty.size() * 2][];
    int at = 0;
    for (Map.Entry<String, Customer> each : dirty.entrySet()) {
      pairs[at++] = (prefix + ":" + each.getKey()).getBytes(StandardCharsets.UTF_8);
      pairs[at++] = each.getValue().document(each.getKey());
    }
    redis.mset(pairs);
    watch.readable(receivedMs, events);
    dirty.clear();
    events = 0;
  }

  public void close() {
    redis.close();
  }
}
