import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.DataInputStream;
import java.io.DataOutputStream;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.time.Duration;
import java.util.Properties;
import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.clients.producer.ProducerConfig;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.Topology;
import org.apache.kafka.streams.errors.StreamsUncaughtExceptionHandler;
import org.apache.kafka.streams.processor.PunctuationType;
import org.apache.kafka.streams.processor.api.Processor;
import org.apache.kafka.streams.processor.api.ProcessorContext;
import org.apache.kafka.streams.processor.api.Record;
import org.apache.kafka.streams.state.KeyValueStore;
import org.apache.kafka.streams.state.Stores;

/**
 * The work in Kafka Streams, exactly_once_v2: input offsets, steps and state's changelog commit together.
 *
 * <p>Redis is outside of that: it is written before the commit, so after a crash it may show what never was committed.
 * Arguments: bootstrap, redis host, redis port, input topic, output topic, prefix, count, warm share, linger ms.
 */
public final class KStreamsPeer {
  private static final String STORE = "customers";

  public static void main(String[] args) {
    String input = args[3], output = args[4], prefix = args[5];
    long linger = Long.parseLong(args[8]);
    Watch watch = new Watch(Long.parseLong(args[6]), Double.parseDouble(args[7]));
    Serde<Customer> serde = Serdes.serdeFrom((topic, customer) -> bytes(customer), (topic, raw) -> customer(raw));

    Topology topology = new Topology();
    topology.addSource("in", Serdes.String().deserializer(), Serdes.ByteArray().deserializer(), input);
    topology.addProcessor(
        "context",
        () -> new Context(args[1], Integer.parseInt(args[2]), prefix, linger, watch),
        "in");
    // The cache holds back what changes again before the commit, so that the changelog gets it once.
    topology.addStateStore(
        Stores.keyValueStoreBuilder(Stores.inMemoryKeyValueStore(STORE), Serdes.String(), serde).withCachingEnabled(),
        "context");
    topology.addSink("out", output, Serdes.String().serializer(), Serdes.ByteArray().serializer(), "context");

    Properties settings = new Properties();
    settings.put(StreamsConfig.APPLICATION_ID_CONFIG, prefix);
    settings.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, args[0]);
    settings.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, StreamsConfig.EXACTLY_ONCE_V2);
    settings.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, 2);
    settings.put(StreamsConfig.STATE_DIR_CONFIG, args[9]);
    settings.put(StreamsConfig.STATESTORE_CACHE_MAX_BYTES_CONFIG, 256 * 1024 * 1024);
    settings.put(StreamsConfig.BUFFERED_RECORDS_PER_PARTITION_CONFIG, 5000);
    settings.put(StreamsConfig.consumerPrefix(ConsumerConfig.AUTO_OFFSET_RESET_CONFIG), "earliest");
    settings.put(StreamsConfig.consumerPrefix(ConsumerConfig.MAX_POLL_RECORDS_CONFIG), 5000);
    settings.put(StreamsConfig.producerPrefix(ProducerConfig.LINGER_MS_CONFIG), 5);
    settings.put(StreamsConfig.producerPrefix(ProducerConfig.BATCH_SIZE_CONFIG), 256 * 1024);

    KafkaStreams streams = new KafkaStreams(topology, settings);
    streams.setUncaughtExceptionHandler(
        error -> {
          error.printStackTrace();
          Runtime.getRuntime().halt(1);
          return StreamsUncaughtExceptionHandler.StreamThreadExceptionResponse.SHUTDOWN_CLIENT;
        });
    streams.start();
  }

  private static byte[] bytes(Customer customer) {
    if (customer == null) return null;
    try {
      ByteArrayOutputStream out = new ByteArrayOutputStream(16_384);
      customer.write(new DataOutputStream(out));
      return out.toByteArray();
    } catch (IOException error) {
      throw new UncheckedIOException(error);
    }
  }

  private static Customer customer(byte[] raw) {
    if (raw == null) return null;
    try {
      return Customer.read(new DataInputStream(new ByteArrayInputStream(raw)));
    } catch (IOException error) {
      throw new UncheckedIOException(error);
    }
  }

  private static final class Context implements Processor<String, byte[], String, byte[]> {
    private final String host, prefix;
    private final int port;
    private final long linger;
    private final Watch watch;
    private ProcessorContext<String, byte[]> context;
    private KeyValueStore<String, Customer> store;
    private RedisWriter redis;

    Context(String host, int port, String prefix, long linger, Watch watch) {
      this.host = host;
      this.port = port;
      this.prefix = prefix;
      this.linger = linger;
      this.watch = watch;
    }

    @Override
    public void init(ProcessorContext<String, byte[]> context) {
      this.context = context;
      this.store = context.getStateStore(STORE);
      this.redis = new RedisWriter(host, port, prefix, linger, watch);
      Duration often = Duration.ofMillis(Math.max(1, linger / 2));
      context.schedule(often, PunctuationType.WALL_CLOCK_TIME, now -> redis.flushIfDue());
    }

    @Override
    public void process(Record<String, byte[]> record) {
      Customer customer = store.get(record.key());
      if (customer == null) customer = new Customer();
      try {
        context.forward(record.withValue(customer.apply(record.value())));
      } catch (IOException error) {
        throw new UncheckedIOException(error);
      }
      store.put(record.key(), customer);
      redis.changed(record.key(), customer, record.timestamp());
    }

    @Override
    public void close() {
      redis.close();
    }
  }
}
